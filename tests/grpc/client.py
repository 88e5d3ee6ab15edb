"""A gRPC client by grpcio, on one channel, with calls of mixed keys. Arguments: the address, and who answers each."""

import sys
import threading
import time

import grpc

ADDRESS = sys.argv[1]
# Whose key, and the name of who is to answer.
KEYS = [(None, "staging/web"), ("alice", "alice/web"), ("bob", "bob/web")]
LARGEST = 8 << 20

options = [
    ("grpc.max_receive_message_length", LARGEST),
    ("grpc.max_send_message_length", LARGEST),
    ("grpc.enable_retries", 0),
    ("grpc.enable_http_proxy", 0),
]
channel = grpc.insecure_channel(ADDRESS, options=options)


def fields(key):
    return [("baggage", "okteto-divert=" + key)] if key else []


def expect(got, wanted):
    if got != wanted:
        raise AssertionError("%.200r instead of %.200r" % (got, wanted))


def path(name):
    return "/test.Town/" + name


def each_kind(key, name):
    meta = fields(key)
    unary = channel.unary_unary(path("Unary"))
    expect(unary(b"m", metadata=meta, timeout=20), ("%s m" % name).encode())
    collect = channel.stream_unary(path("Collect"))
    messages = [bytes(1000 * number) for number in range(50)]
    expect(collect(iter(messages), metadata=meta, timeout=20), ("%s 50 1225000" % name).encode())
    count = channel.unary_stream(path("Count"))
    got = list(count(b"500", metadata=meta, timeout=20))
    expect(got, [("%s %d" % (name, number)).encode() for number in range(500)])
    chat(meta, name)
    large = bytes(range(256)) * (16 << 10)
    expect(channel.unary_unary(path("Same"))(large, metadata=meta, timeout=20), large)
    try:
        channel.unary_unary(path("Fail"))(b"", metadata=meta, timeout=20)
        raise AssertionError("no failure")
    except grpc.RpcError as error:
        expect((error.code(), error.details()), (grpc.StatusCode.NOT_FOUND, name + ": n\u00f6"))


def chat(meta, name):
    """Each message is said when the answer to the last has come."""
    answered = threading.Semaphore(1)

    def messages():
        for number in range(20):
            answered.acquire()
            yield str(number).encode()

    number = 0
    for answer in channel.stream_stream(path("Chat"))(messages(), metadata=meta, timeout=20):
        expect(answer, ("%s %d" % (name, number)).encode())
        number += 1
        answered.release()
    expect(number, 20)


def deadline(key, name):
    """Of a call that has begun, which its server says. A server may keep a deadline, too, and a busy machine may let
    one pass before the call begins: then the next has more time. Returns how many calls it took."""
    seconds, begun, calls = 0.25, False, 0
    while not begun:
        seconds, calls = seconds * 2, calls + 1
        began = time.monotonic()
        try:
            for answer in channel.unary_stream(path("Follow"))(b"", metadata=fields(key), timeout=seconds):
                expect(answer, ("%s begun" % name).encode())
                begun = True
            raise AssertionError("no deadline")
        except grpc.RpcError as error:
            ends = [grpc.StatusCode.DEADLINE_EXCEEDED]
            if not begun:
                # What tonic answers then.
                ends.append(grpc.StatusCode.CANCELLED)
            if error.code() not in ends or seconds > 20:
                raise
    took = time.monotonic() - began
    if not seconds - 0.1 < took < seconds + 5:
        raise AssertionError("the deadline of %s s took %s s" % (seconds, took))
    return calls


def cancel(key):
    """The server says that the call has begun by nothing; one behind it on the same connection has its answer."""
    call = channel.unary_unary(path("Hang")).future(b"", metadata=fields(key))
    channel.unary_unary(path("Unary"))(b"m", metadata=fields(key), timeout=20)
    call.cancel()
    try:
        call.result(timeout=20)
        raise AssertionError("not cancelled")
    except grpc.FutureCancelledError:
        pass


def none_hangs(key, name):
    """The server hears of what is not wanted any more while the connection is open."""
    hanging = channel.unary_unary(path("Hanging"))
    end = time.monotonic() + 20
    while (answer := hanging(b"", metadata=fields(key), timeout=20)) != ("%s 0" % name).encode():
        if time.monotonic() > end:
            raise AssertionError("still under way: %r" % answer)
        time.sleep(0.01)


def at_once():
    calls = []
    for number in range(300):
        key, name = KEYS[number % 3]
        call = channel.unary_unary(path("Unary")).future(str(number).encode(), metadata=fields(key), timeout=30)
        calls.append((call, ("%s %d" % (name, number)).encode()))
    for call, wanted in calls:
        expect(call.result(), wanted)


for key, name in KEYS:
    each_kind(key, name)
at_once()
for key, name in KEYS:
    calls = deadline(key, name) + 1
    cancel(key)
    none_hangs(key, name)
    print("%s was left %d calls" % (name, calls))
# What is left of the connection serves on.
at_once()
channel.close()
print("grpcio is done")
