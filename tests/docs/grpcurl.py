"""Makes the calls of grpcurl's command lines, knowing nothing of the contract but what reflection says."""

import argparse
import json

import grpc
from google.protobuf import descriptor_pool, json_format, message_factory
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase


def grpcurl(words):
    """Does what `grpcurl -plaintext …` does.

    Returns:
        For a call the replies, as JSON reads them; for `list` and `describe` the names.
    """
    parser = argparse.ArgumentParser(prog=words[0], exit_on_error=False)
    parser.add_argument("-plaintext", action="store_true", required=True)
    parser.add_argument("-d", default="{}")
    parser.add_argument("-H", action="append", default=[])
    parser.add_argument("address")
    parser.add_argument("what")
    parser.add_argument("symbol", nargs="?")
    call = parser.parse_args(words[1:])
    headers = [tuple(part.strip() for part in header.split(":", 1)) for header in call.H]
    with grpc.insecure_channel(call.address) as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        pool = descriptor_pool.DescriptorPool(database)
        if call.what == "list":
            return list(database.get_services())
        if call.what == "describe":
            return [field.name for field in pool.FindMessageTypeByName(call.symbol).fields]
        return _invoke(channel, pool, call.what, call.d, headers)


def _invoke(channel, pool, path, data, headers):
    service, _, name = path.partition("/")
    method = pool.FindServiceByName(service).FindMethodByName(name)
    request_type, reply_type = map(message_factory.GetMessageClass, (method.input_type, method.output_type))
    requests = [json_format.ParseDict(one, request_type()) for one in _documents(data)]
    kind = f"{'stream' if method.client_streaming else 'unary'}_"
    kind += "stream" if method.server_streaming else "unary"
    send = getattr(channel, kind)(
        f"/{path}",
        request_serializer=request_type.SerializeToString,
        response_deserializer=reply_type.FromString,
    )
    sent = iter(requests) if method.client_streaming else requests[0]
    replies = send(sent, timeout=10, metadata=headers)
    replies = list(replies) if method.server_streaming else [replies]
    return [json_format.MessageToDict(reply, descriptor_pool=pool) for reply in replies]


def _documents(text):
    decoder, at = json.JSONDecoder(), 0
    while at < len(text):
        value, at = decoder.raw_decode(text, at)
        at += len(text[at:]) - len(text[at:].lstrip())
        yield value
