"""What is said to people: no secrets, no control characters, and what the system's own errors come to."""

import errno
import os
import re

_URI = re.compile(r"[a-zA-Z][\w+.-]*://[^\s'\"]*")
_PASSWORD = re.compile(r"://[^@?]*:[^@?]*@")
_QUERY = re.compile(r"([?&])[^#]*")
_SECRET = re.compile(r"key|secret|token|passw|credential|^sig", re.IGNORECASE)
# C0 but for tab and newline, DEL, C1, and what turns the direction of writing; a terminal would obey them.
_CONTROL = {
    code: f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"
    for code in (*range(9), *range(11, 32), *range(127, 160), *range(0x202A, 0x202F), *range(0x2066, 0x206A))
}
_REMEDIES = {
    errno.EACCES: "this user may not; give another place, or have its owner change its permissions",
    errno.EPERM: "this user may not; give another place, or have its owner change its permissions",
    errno.EROFS: "give a place that may be written to",
    errno.ENOSPC: "make room there, or give a place on another disk",
    errno.EDQUOT: "make room there, or give a place on another disk",
    errno.EFBIG: "give a place on another file system, or raise ulimit -f",
    errno.EMFILE: "raise the limit of open files: ulimit -n 65536",
    errno.ENFILE: "this machine has too many files open: close something",
    errno.ENOMEM: "close something, or take a machine with more memory",
    errno.ENAMETOOLONG: "give a shorter name",
    errno.ENOTDIR: "a file stands where a folder is needed; give another place",
    errno.EISDIR: "a folder stands where a file is needed; give another place",
    errno.EEXIST: "a file stands where a folder is needed; give another place",
    errno.ELOOP: "symbolic links there point at each other",
    errno.EIO: "the disk or its connection fails: see dmesg",
    errno.ESTALE: "the network drive has lost it: run the command again",
}


def without_secrets(text: str) -> str:
    """``text`` with the passwords and keys taken out of the URIs in it."""
    return _URI.sub(lambda uri: _QUERY.sub(lambda query: _public(query[0]), _PASSWORD.sub("://", uri[0])), text)


def printable(text: str) -> str:
    """``text`` with control characters spelt out, so that a name cannot move the cursor or clear the screen."""
    return text.translate(_CONTROL)


def said_by_system(error: OSError) -> str:
    """``error`` as a sentence: the file, what the system said, and what to do about it where that is known."""
    said = error.strerror or " ".join(str(error).split()) or type(error).__name__
    places = [os.fsdecode(place) for place in (error.filename, error.filename2) if isinstance(place, str | bytes)]
    place = f"{' → '.join(places)}: " if places else ""
    remedy = _REMEDIES.get(error.errno or 0)
    return f"{place}{said}" + (f"; {remedy}" if remedy else "")


def _public(query: str) -> str:
    kept = [pair for pair in query[1:].split("&") if not _SECRET.search(pair.partition("=")[0])]
    return query[0] + "&".join(kept) if kept else ""
