"""A small S3: the requests that pyarrow's client makes, over HTTP on loopback, objects in memory.

Not for more than tests: one bucket, one key pair, whose signature is not checked. What is written appears whole, at the
end of a PUT or when a multipart upload is completed, as in S3.
"""

import io
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import BinaryIO
from urllib.parse import parse_qs, quote, unquote, urlsplit
from xml.sax.saxutils import escape

BUCKET, ACCESS_KEY, SECRET = "graphs", "AKIATEST", "not-so-secret"
_NEW = "Sun, 22 Nov 2026 09:00:00 GMT"


class S3:
    """Attributes:
    objects: key → content of the bucket.
    log: (method, key) of every request, in order.
    refuse: (method, key) → whether to answer "access denied".
    """

    def __init__(self, port: int) -> None:
        self.objects: dict[str, bytes] = {}
        self.log: list[tuple[str, str]] = []
        self.refuse: Callable[[str, str], bool] = lambda method, key: False
        self.uploads: dict[str, dict[int, bytes]] = {}
        self._endpoint = f"http://127.0.0.1:{port}"

    def uri(self, path: str, bucket: str = BUCKET, key_pair: str = f"{ACCESS_KEY}:{SECRET}") -> str:
        """With the key pair in it, as pyarrow reads it."""
        return f"s3://{key_pair}@{bucket}/{path}?endpoint_override={quote(self._endpoint, safe='')}&region=us-east-1"

    def names(self, below: str) -> set[str]:
        """Of the objects below a folder; a name ending in / is only the client's sign of a folder."""
        prefix = f"{below}/"
        return {key.removeprefix(prefix) for key in self.objects if key.startswith(prefix) and not key.endswith("/")}


@contextmanager
def serve_s3() -> Iterator[S3]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    s3 = S3(server.server_port)
    server.s3 = s3  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield s3
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: object) -> None:
        """Quiet."""

    def _answer(self) -> None:
        s3: S3 = self.server.s3  # type: ignore[attr-defined]
        parts = urlsplit(self.path)
        bucket, _, key = unquote(parts.path).lstrip("/").partition("/")
        query = {name: values[0] for name, values in parse_qs(parts.query, keep_blank_values=True).items()}
        body = self._body()
        s3.log.append((self.command, key))
        if f"Credential={ACCESS_KEY}/" not in self.headers.get("Authorization", ""):
            self._error(403, "InvalidAccessKeyId")
        elif bucket != BUCKET:
            self._error(404, "NoSuchBucket")
        elif s3.refuse(self.command, key):
            self._error(403, "AccessDenied")
        elif not key:
            self._send(200, self._listing(s3, query) if self.command == "GET" else b"")
        elif self.command in ("GET", "HEAD"):
            self._get(s3, key)
        elif self.command == "POST" and "uploads" in query:
            upload = uuid.uuid4().hex
            s3.uploads[upload] = {}
            self._send(200, _xml("InitiateMultipartUploadResult", f"<UploadId>{upload}</UploadId>"))
        elif self.command == "POST":
            content = s3.uploads.pop(query["uploadId"])
            s3.objects[key] = b"".join(content[number] for number in sorted(content))
            self._send(200, _xml("CompleteMultipartUploadResult", "<ETag>1</ETag>"))
        elif self.command == "PUT" and "uploadId" in query:
            s3.uploads[query["uploadId"]][int(query["partNumber"])] = body
            self._send(200, b"", ETag=f'"{query["partNumber"]}"')
        elif self.command == "PUT":
            s3.objects[key] = body
            self._send(200, b"", ETag='"1"')
        else:
            s3.objects.pop(key, None)
            self._send(204, b"")

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _answer

    def _body(self) -> bytes:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = _chunks(self.rfile)
        # The client's own chunks within: "size;signature", and a trailer with the checksum.
        aws = "aws-chunked" in self.headers.get("Content-Encoding", "")
        return _chunks(io.BytesIO(body)) if aws else body

    def _get(self, s3: S3, key: str) -> None:
        if key not in s3.objects:
            self._error(404, "NoSuchKey")
            return
        content = s3.objects[key]
        wanted = self.headers.get("Range")
        if wanted is None:
            self._send(200, content)
            return
        first, _, last = wanted.removeprefix("bytes=").partition("-")
        piece = content[int(first) : int(last) + 1]
        self._send(206, piece, **{"Content-Range": f"bytes {first}-{int(first) + len(piece) - 1}/{len(content)}"})

    def _listing(self, s3: S3, query: dict[str, str]) -> bytes:
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        found, folders = [], set()
        for key, content in sorted(s3.objects.items()):
            if key.startswith(prefix):
                rest = key.removeprefix(prefix)
                if delimiter and delimiter in rest:
                    folders.add(prefix + rest.partition(delimiter)[0] + delimiter)
                else:
                    size = f"<Size>{len(content)}</Size><LastModified>2026-11-22T09:00:00.000Z</LastModified>"
                    found.append(f"<Contents><Key>{escape(key)}</Key>{size}</Contents>")
        common = "".join(f"<CommonPrefixes><Prefix>{escape(f)}</Prefix></CommonPrefixes>" for f in sorted(folders))
        count = f"<KeyCount>{len(found) + len(folders)}</KeyCount><IsTruncated>false</IsTruncated>"
        return _xml("ListBucketResult", count + "".join(found) + common)

    def _error(self, status: int, code: str) -> None:
        self._send(status, _xml("Error", f"<Code>{code}</Code><Message>{code}</Message>"))

    def _send(self, status: int, content: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Last-Modified": _NEW, "Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _chunks(stream: BinaryIO) -> bytes:
    content = b""
    while size := int(stream.readline().split(b";")[0], 16):
        content += stream.read(size)
        stream.readline()
    while stream.readline().strip():
        pass
    return content


def _xml(tag: str, inside: str) -> bytes:
    return f'<?xml version="1.0"?><{tag} xmlns="http://s3.amazonaws.com/doc/2006-03-01/">{inside}</{tag}>'.encode()
