"""A gRPC server with TLS: unary calls and streams that show what they were sent. Tells its port on standard output."""

import sys
from concurrent import futures

import grpc

certificate, key = (open(path, "rb").read() for path in sys.argv[1:3])


def sent(context):
    return dict(context.invocation_metadata()).get("authorization", "nothing").encode()


def unary(request, context):
    context.set_trailing_metadata((("x-sent", sent(context).decode()),))
    return b"<" + request + b" with " + sent(context) + b">"


def stream(requests, context):
    for request in requests:
        yield b"<" + request + b" with " + sent(context) + b">"


def fails(request, context):
    context.abort(grpc.StatusCode.FAILED_PRECONDITION, "not " + sent(context).decode())


handlers = grpc.method_handlers_generic_handler("demo.Echo", {
    "Unary": grpc.unary_unary_rpc_method_handler(unary),
    "Stream": grpc.stream_stream_rpc_method_handler(stream),
    "Fails": grpc.unary_unary_rpc_method_handler(fails),
})
server = grpc.server(futures.ThreadPoolExecutor(4))
server.add_generic_rpc_handlers((handlers,))
port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([(key, certificate)]))
server.start()
print(port, flush=True)
server.wait_for_termination()
