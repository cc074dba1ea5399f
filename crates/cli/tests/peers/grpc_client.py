"""A gRPC client in a session, told nothing but a name."""

import grpc

roots = grpc.ssl_channel_credentials(open("/tmp/.cloister/ca.pem", "rb").read())
with grpc.secure_channel("grpc.example.test:443", roots) as channel:
    answer, call = channel.unary_unary("/demo.Echo/Unary").with_call(b"one", timeout=10)
    print(answer.decode(), dict(call.trailing_metadata())["x-sent"], call.code().name)
    for answer in channel.stream_stream("/demo.Echo/Stream")(iter([b"a", b"b", b"c"]), timeout=10):
        print(answer.decode())
    try:
        channel.unary_unary("/demo.Echo/Fails")(b"", timeout=10)
    except grpc.RpcError as error:
        print(error.code().name, error.details())
