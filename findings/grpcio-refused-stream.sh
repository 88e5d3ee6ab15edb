#!/usr/bin/env bash
# grpcio 1.74.0 (Python, gRPC's C core) does not try a call again whose stream was refused.
#
# A server that resets a stream with REFUSED_STREAM says that it has not looked at it (RFC 9113 8.7), and gRPC's design for
# retries (proposal A6) has libraries send such a call once more by themselves, without a retry policy. So a proxy that
# refuses a stream over a limit seems to cost its client nothing. With this library it does: the call fails with
# UNAVAILABLE, and no second stream is opened.
#
# Seen: refused UNAVAILABLE [1]
#       other   OK [1]
# The first call's stream is refused; the second, on a connection of its own, is answered, so the server is sound.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" --quiet --disable-pip-version-check install grpcio==1.74.0 h2==4.2.0
cat > "$folder/play.py" <<'PYTHON'
import socket
import threading

import grpc
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import RequestReceived


def serve(listener, refuse, streams):
    peer, _ = listener.accept()
    http2 = H2Connection(H2Configuration(client_side=False, header_encoding="utf-8"))
    http2.initiate_connection()
    peer.sendall(http2.data_to_send())
    while data := peer.recv(65536):
        for event in http2.receive_data(data):
            if not isinstance(event, RequestReceived):
                continue
            streams.append(event.stream_id)
            if refuse and len(streams) == 1:
                http2.reset_stream(event.stream_id, ErrorCodes.REFUSED_STREAM)
                continue
            head = [(":status", "200"), ("content-type", "application/grpc")]
            http2.send_headers(event.stream_id, head)
            http2.send_data(event.stream_id, bytes(5))
            http2.send_headers(event.stream_id, [("grpc-status", "0")], end_stream=True)
        peer.sendall(http2.data_to_send())


for name, refuse in [("refused", True), ("other", False)]:
    listener, streams = socket.create_server(("127.0.0.1", 0)), []
    threading.Thread(target=serve, args=(listener, refuse, streams), daemon=True).start()
    with grpc.insecure_channel("127.0.0.1:%d" % listener.getsockname()[1]) as channel:
        call = channel.unary_unary("/a.Service/Call")
        try:
            call(b"", timeout=5)
            code = "OK"
        except grpc.RpcError as error:
            code = error.code().name
    print(f"{name:7} {code} {streams}")
PYTHON
seen=$("$folder/venv/bin/python" "$folder/play.py")
echo "$seen"
expected=$'refused UNAVAILABLE [1]\nother   OK [1]'
[ "$seen" = "$expected" ] || { echo "it behaves otherwise now; expected:"; echo "$expected"; exit 1; }
