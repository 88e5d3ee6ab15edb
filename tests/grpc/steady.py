"""Unary calls by grpcio of mixed keys, on one channel, until SIGTERM. Arguments: the address."""

import signal
import sys
import threading

import grpc

# Whose key, and the name of who is to answer.
KEYS = [(None, "staging/web"), ("alice", "alice/web"), ("bob", "bob/web")]
CALLERS = 4
# Calls of each until it says that they flow.
A_WHILE = 50

channel = grpc.insecure_channel(sys.argv[1], options=[("grpc.enable_http_proxy", 0)])
unary = channel.unary_unary("/test.Town/Unary")
stop = threading.Event()
flowing = threading.Barrier(CALLERS + 1)
signal.signal(signal.SIGTERM, lambda *_: stop.set())
calls = [0] * CALLERS
wrong = []


def call(caller):
    while not stop.is_set():
        key, name = KEYS[(caller + calls[caller]) % len(KEYS)]
        fields = [("baggage", "okteto-divert=" + key)] if key else []
        text = "%d.%d" % (caller, calls[caller])
        try:
            answer = unary(text.encode(), metadata=fields, timeout=20).decode()
        except grpc.RpcError as error:
            answer = "%s: %s" % (error.code(), error.details())
        if answer != "%s %s" % (name, text):
            wrong.append("%s to %s: %s" % (text, name, answer))
        calls[caller] += 1
        if calls[caller] == A_WHILE:
            flowing.wait()


threads = [threading.Thread(target=call, args=(caller,)) for caller in range(CALLERS)]
for thread in threads:
    thread.start()
flowing.wait()
print("grpcio flows", flush=True)
stop.wait()
for thread in threads:
    thread.join()
channel.close()
print("%d calls by grpcio, wrong: %s" % (sum(calls), wrong), flush=True)
sys.exit(1 if wrong else 0)
