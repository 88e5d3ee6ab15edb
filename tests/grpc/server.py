"""A gRPC server by grpcio: the methods of tests/src/grpc.rs. Arguments: its name, its port."""

import sys
import threading
from concurrent import futures

import grpc

NAME, PORT = sys.argv[1], sys.argv[2]
LARGEST = 8 << 20
# An event for each call that hangs. Threads may change a list without a lock.
under_way = []


def say(text):
    print(text, flush=True)


def said(text):
    return ("%s %s" % (NAME, text)).encode()


def unary(message, context):
    return said(message.decode())


def same(message, context):
    return message


def collect(messages, context):
    lengths = [len(message) for message in messages]
    return said("%d %d" % (len(lengths), sum(lengths)))


def count(message, context):
    for number in range(int(message)):
        yield said(number)


def chat(messages, context):
    for message in messages:
        yield said(message.decode())


def fail(message, context):
    context.abort(grpc.StatusCode.NOT_FOUND, NAME + ": n\u00f6")


def hanging(context):
    """Says that the call has begun, and when it is given up, which sets what this returns."""
    remaining = context.time_remaining()
    say("hanging, %s" % ("no deadline" if remaining is None or remaining > 1e6 else "a deadline"))
    over = threading.Event()
    under_way.append(over)

    def given_up():
        say("cancelled")
        under_way.remove(over)
        over.set()

    if not context.add_callback(given_up):
        # It was before this began.
        given_up()
    return over


def hang(message, context):
    hanging(context).wait()
    return b""


def follow(message, context):
    over = hanging(context)
    yield said("begun")
    over.wait()


def still_hanging(message, context):
    return said(len(under_way))


KINDS = {
    "Unary": grpc.unary_unary_rpc_method_handler(unary),
    "Same": grpc.unary_unary_rpc_method_handler(same),
    "Collect": grpc.stream_unary_rpc_method_handler(collect),
    "Count": grpc.unary_stream_rpc_method_handler(count),
    "Chat": grpc.stream_stream_rpc_method_handler(chat),
    "Fail": grpc.unary_unary_rpc_method_handler(fail),
    "Follow": grpc.unary_stream_rpc_method_handler(follow),
    "Hang": grpc.unary_unary_rpc_method_handler(hang),
    "Hanging": grpc.unary_unary_rpc_method_handler(still_hanging),
}

options = [("grpc.max_receive_message_length", LARGEST), ("grpc.max_send_message_length", LARGEST)]
server = grpc.server(futures.ThreadPoolExecutor(max_workers=40), options=options)
server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Town", KINDS),))
server.add_insecure_port("[::]:" + PORT)
server.start()
say("serving")
server.wait_for_termination()
