#!/usr/bin/env bash
# Certificates with which the nodes of a Ray cluster encrypt what they say to each other, and know each other by.
#
#   cluster/tls/make_certificates.sh FOLDER HOST_OR_IP...
#
# Name every node, by each name and address that others reach it by (127.0.0.1 and localhost are always in). FOLDER gets
#   ca.crt             the authority: every node and client has it
#   ca.key             signs further certificates: keep it off the nodes
#   node.crt node.key  what every node and client shows
# DAYS=n in the environment: how long they hold; 365 unless told otherwise.
set -euo pipefail
umask 077

if [ $# -lt 1 ] || [ "${1#-}" != "$1" ]; then
    sed -n 's/^# \{0,1\}//; 2,/^DAYS/p' "$0" >&2
    exit 2
fi
folder=$1
shift
days=${DAYS:-365}
case $days in '' | *[!0-9]*) echo "DAYS=$days: needed a number of days" >&2; exit 2 ;; esac

for file in ca.crt ca.key node.crt node.key; do
    if [ -e "$folder/$file" ]; then
        echo "$folder/$file is there already and is not replaced: nodes that run with it would no longer know the others." \
             "Give another folder, or remove it first." >&2
        exit 1
    fi
done

names=
for name in localhost 127.0.0.1 "$@"; do
    case $name in
        *[!A-Za-z0-9.:_*-]*) echo "$name is no host name and no address" >&2; exit 2 ;;
        *:*) kind=IP ;;                 # IPv6
        *[!0-9.]*) kind=DNS ;;
        *) kind=IP ;;
    esac
    names="$names${names:+,}$kind:$name"
done

mkdir -p "$folder"
work=$(mktemp -d "$folder/.making.XXXXXX")
trap 'rm -rf "$work"' EXIT
key() { openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out "$1" 2>/dev/null; }

key "$work/ca.key"
openssl req -x509 -new -key "$work/ca.key" -days "$days" -subj "/CN=optimag cluster authority" \
    -addext "basicConstraints=critical,CA:TRUE" -addext "keyUsage=critical,keyCertSign,cRLSign" -out "$work/ca.crt"
key "$work/node.key"
openssl req -new -key "$work/node.key" -subj "/CN=optimag cluster node" -out "$work/node.csr"
printf '%s\n' "subjectAltName=$names" "basicConstraints=critical,CA:FALSE" "keyUsage=critical,digitalSignature" \
    "extendedKeyUsage=serverAuth,clientAuth" >"$work/extensions"
openssl x509 -req -in "$work/node.csr" -CA "$work/ca.crt" -CAkey "$work/ca.key" -CAcreateserial -days "$days" \
    -extfile "$work/extensions" -out "$work/node.crt" 2>/dev/null

chmod 644 "$work/ca.crt" "$work/node.crt"
mv "$work/ca.crt" "$work/ca.key" "$work/node.crt" "$work/node.key" "$folder/"
there=$(cd "$folder" && pwd)
cat <<END
made for $names, $days days. On every node and client:
  export RAY_USE_TLS=1 RAY_TLS_CA_CERT=$there/ca.crt
  export RAY_TLS_SERVER_CERT=$there/node.crt RAY_TLS_SERVER_KEY=$there/node.key
END
