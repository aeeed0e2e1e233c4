"""Serves exported models over TensorFlow Serving's REST and gRPC protocols, where TensorFlow Serving itself is not.

    python -m tfnas.serving.server --model_base_path=runs/digits/export/digits --model_name=digits

Its flags are named as tensorflow_model_server's are, so that the command and the clients move to the image
`tensorflow/serving` unchanged. It is not TensorFlow Serving: it loads the newest version once, when it starts, does not
batch the requests of different clients, and answers predict, metadata and status only. It needs the extra `serving`.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import errno
import os
import pathlib
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from absl import app, flags, logging

from tfnas.common import installation, terminal
from tfnas.common.errors import UserError, fail
from tfnas.serving import versions

if TYPE_CHECKING:
    from tfnas.serving import servable

_BASE_PATH = flags.DEFINE_string("model_base_path", None, "Folder of the model, with one for each version.")
_NAME = flags.DEFINE_string("model_name", "default", "The model's name in requests.")
_CONFIG_FILE = flags.DEFINE_string(
    "model_config_file", None, "Serves several models: a text file with a ModelServerConfig's model_config_list."
)
_PORT = flags.DEFINE_integer("port", 8500, "Port of gRPC; 0 selects a free one.", 0, 65535)
_REST_PORT = flags.DEFINE_integer("rest_api_port", 8501, "Port of REST; 0 selects a free one.", 0, 65535)
_MAX_BYTES = flags.DEFINE_integer(
    "max_request_bytes",
    32 << 20,
    "Most bytes of a request: of its body in REST, of its message in gRPC.",
    1,
)
_MAX_IMAGES = flags.DEFINE_integer("max_images", 256, "Most images, or other inputs, of a request.", 1)
_ADDRESS = flags.DEFINE_string(
    "address", "127.0.0.1", "Address to listen on; 0.0.0.0 is all of the machine's addresses."
)

_PROGRAM = "tfnas.serving.server"
_GRACE = 10  # seconds that pending requests have to finish
_HTTP = {"INVALID_ARGUMENT": 400, "FAILED_PRECONDITION": 400, "NOT_FOUND": 404, "RESOURCE_EXHAUSTED": 429}


def start_grpc(models: servable.Models, address: str, port: int, max_bytes: int) -> tuple[Any, int]:
    """A grpc.Server that answers PredictionService's Predict and GetModelMetadata, started, and its port.

    Args:
        models: to serve.
        address: of this machine, to listen on.
        port: 0 selects a free one.
        max_bytes: of a request's message; a larger one is refused with RESOURCE_EXHAUSTED, unread.

    Raises:
        UserError: if the port is not available.
    """
    import grpc
    import numpy as np
    import tensorflow as tf
    from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

    from tfnas.serving import servable

    def predict(request: Any) -> Any:
        model = models.wanted(request.model_spec)
        name = request.model_spec.signature_name
        response = predict_pb2.PredictResponse()
        answer = model.predict(name, dict(request.inputs), servable.from_message, request.output_filter)
        for output, array in answer.items():
            message = tf.make_tensor_proto(array)
            if array.dtype == np.float32:  # where TensorFlow Serving puts it, and clients look
                message.ClearField("tensor_content")
                message.float_val[:] = array.ravel().tolist()
            response.outputs[output].CopyFrom(message)
        _identify(response.model_spec, model)
        response.model_spec.signature_name = name or servable.DEFAULT_SIGNATURE
        return response

    def answered(answer: Callable[[Any], Any], request: Any, context: Any) -> Any:
        try:
            return answer(request)
        except servable.RequestError as refused:
            return context.abort(grpc.StatusCode[refused.code], str(refused))

    class Service(prediction_service_pb2_grpc.PredictionServiceServicer):
        def Predict(self, request: Any, context: Any) -> Any:
            return answered(predict, request, context)

        def GetModelMetadata(self, request: Any, context: Any) -> Any:
            return answered(lambda request: _metadata(models.wanted(request.model_spec)), request, context)

        def Classify(self, request: Any, context: Any) -> Any:
            return context.abort(grpc.StatusCode.UNIMPLEMENTED, "Predict or GetModelMetadata expected")

        Regress = MultiInference = Classify

    options = [
        ("grpc.so_reuseport", 0),
        ("grpc.max_send_message_length", -1),
        ("grpc.max_receive_message_length", max_bytes),
        # No compression: the limit would hold for a message as it is sent, whatever it is unpacked to.
        ("grpc.compression_enabled_algorithms_bitset", 1),
    ]
    server = grpc.server(concurrent.futures.ThreadPoolExecutor(thread_name_prefix="grpc"), options=options)
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(Service(), server)
    try:
        port = server.add_insecure_port(f"{address}:{port}")
    except RuntimeError:  # it was free before the model was loaded
        raise _in_use("--port", address, port) from None
    server.start()
    return server, port


def listen(flag: str, address: str, port: int) -> socket.socket:
    """A listening socket.

    Args:
        flag: that gave the port, for messages.
        address: of this machine, to listen on.
        port: 0 selects a free one.

    Raises:
        UserError: if the port is not available.
    """
    try:
        return socket.create_server((address, port))
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise _in_use(flag, address, port) from None
        reason = (error.strerror or "").partition(" (while")[0]  # without what Python adds on the address
        received = f"{port} ({reason})"
        raise UserError(f"{flag}: one that can be had at --address={address} expected. Received: {received}") from None


def _in_use(flag: str, address: str, port: int) -> UserError:
    return UserError(f"{flag}={port}: in use at {address} by another process; give another, or 0 for any free one")


def _check_ports() -> None:
    """Raises UserError if a port is not available.

    The ports are released until everything is loaded, so that clients are refused until then and do not wait.
    """
    address, port, rest_port = _ADDRESS.value, _PORT.value, _REST_PORT.value
    if port == rest_port != 0:
        raise UserError(f"--port and --rest_api_port: two ports expected. Received: {port} for both")
    listen("--rest_api_port", address, rest_port).close()
    listen("--port", address, port).close()


def rest_application(models: servable.Models, max_bytes: int) -> Any:
    """An aiohttp Application that answers TensorFlow Serving's predict, status and metadata.

    Args:
        models: to serve.
        max_bytes: of a request's body; a larger one is refused with 413. aiohttp discards the rest of it for some
            seconds, because many clients read no answer before they have sent everything.
    """
    import orjson
    from aiohttp import web
    from google.protobuf import json_format
    from tensorflow_serving.apis import get_model_status_pb2

    from tfnas.serving import servable

    def answered(content: Any, status: int = 200) -> web.Response:
        body = orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)
        return web.Response(body=body, status=status, content_type="application/json")

    def as_json(message: Any) -> web.Response:
        return answered(
            json_format.MessageToDict(
                message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
            )
        )

    def found(request: web.Request) -> servable.Model:
        version = request.match_info.get("version")
        return models.find(request.match_info["name"], int(version) if version else None)

    async def predict(request: web.Request) -> web.Response:
        model = found(request)
        try:  # whatever its content type: curl declares a form
            body = orjson.loads(await request.read())
        except orjson.JSONDecodeError as error:
            raise servable.RequestError(f"body: JSON expected. Received: {error}") from None
        return answered(await asyncio.to_thread(servable.answer_json, model, body))

    async def metadata(request: web.Request) -> web.Response:
        return as_json(_metadata(found(request)))

    async def status(request: web.Request) -> web.Response:
        state = get_model_status_pb2.ModelVersionStatus(version=found(request).version, state="AVAILABLE")
        state.status.SetInParent()
        return as_json(get_model_status_pb2.GetModelStatusResponse(model_version_status=[state]))

    @web.middleware
    async def refusals(request: web.Request, handler: Callable[[web.Request], Any]) -> web.StreamResponse:
        try:
            await request.read()
            return await handler(request)
        except servable.RequestError as error:
            return answered({"error": str(error)}, _HTTP.get(error.code, 500))
        except web.HTTPRequestEntityTooLarge:
            declared = request.content_length or 0
            received = declared if declared > max_bytes else "more"
            message = f"body: at most {max_bytes} bytes expected (--max_request_bytes). Received: {received}"
            return answered({"error": message}, 413)
        except web.HTTPException as error:  # no such path, or no such method there
            return answered({"error": f"{error.reason}: {request.method} {request.path}"}, error.status)
        except Exception:
            logging.exception("%s %s failed", request.method, request.path)
            return answered({"error": "internal error; the server's log has more"}, 500)

    application = web.Application(client_max_size=max_bytes, middlewares=[refusals])
    for path in ("/v1/models/{name}", r"/v1/models/{name}/versions/{version:\d+}"):
        application.router.add_get(path, status)
        application.router.add_get(f"{path}/metadata", metadata)
        application.router.add_post(f"{path}:predict", predict)
    return application


def parse_flags(argv: Sequence[str]) -> list[str]:
    """The positional arguments; a mistake in a flag ends the process with one line and exit code 2."""
    try:
        return flags.FLAGS(list(argv))
    except flags.Error as error:
        fail(str(error), 2, _PROGRAM)


def main(_: Sequence[str]) -> None:
    """Serves until SIGTERM or SIGINT; a user's mistake ends with one line and exit code 1."""
    try:
        _serve()
    except UserError as error:
        fail(str(error), error.exit_code, _PROGRAM)


def _serve() -> None:
    installation.require("serving", ("aiohttp", "grpc", "orjson", "tensorflow_serving"), "the server")
    base_path, config_file = _BASE_PATH.value, _CONFIG_FILE.value
    if bool(base_path) == bool(config_file):
        raise UserError(
            "one of --model_base_path=FOLDER and --model_config_file=FILE expected. "
            f"Received: {'both' if base_path else 'neither'}"
        )
    folders = _read_config(config_file) if config_file else {_NAME.value: str(base_path)}
    for name, folder in folders.items():
        at = f"--model_config_file: {config_file}: base_path of '{name}'" if config_file else "--model_base_path"
        versions.newest(folder, at)
    _check_ports()
    # Mistakes have been reported by now: TensorFlow and the models take seconds to load.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # a refused request is not worth a warning
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # nor an error
    terminal.load_tensorflow()
    from aiohttp import web

    from tfnas.serving import servable

    models = servable.Models(servable.Model(name, folder, _MAX_IMAGES.value) for name, folder in folders.items())
    listening = listen("--rest_api_port", _ADDRESS.value, _REST_PORT.value)
    rest = rest_application(models, _MAX_BYTES.value)
    rpc, port = start_grpc(models, _ADDRESS.value, _PORT.value, _MAX_BYTES.value)
    names = ", ".join(f"{model.name} version {model.version}" for model in models.by_name.values())
    rest_port = listening.getsockname()[1]
    print(f"ready: {names}; REST http://{_ADDRESS.value}:{rest_port}, gRPC {_ADDRESS.value}:{port}", flush=True)
    try:
        web.run_app(rest, sock=listening, shutdown_timeout=_GRACE, access_log=None, print=None)
    finally:
        rpc.stop(_GRACE).wait()


def _read_config(file: str) -> dict[str, str]:
    """The folders of a ModelServerConfig's models, by name."""
    from google.protobuf import text_format
    from tensorflow_serving.config import model_server_config_pb2

    try:
        text = pathlib.Path(file).read_text()
        config = text_format.Parse(text, model_server_config_pb2.ModelServerConfig())
    except (OSError, UnicodeDecodeError, text_format.ParseError) as error:
        raise UserError(f"--model_config_file: {file}: a ModelServerConfig expected. Received: {error}") from error
    folders = {model.name: model.base_path for model in config.model_config_list.config}
    if not folders:
        raise UserError(f"--model_config_file: {file}: a model_config_list with models expected. Received: none")
    return folders


def _metadata(model: servable.Model) -> Any:
    from tensorflow_serving.apis import get_model_metadata_pb2

    signatures = get_model_metadata_pb2.SignatureDefMap()
    for name, signature in model.signature_defs.items():
        signatures.signature_def[name].CopyFrom(signature)
    response = get_model_metadata_pb2.GetModelMetadataResponse()
    _identify(response.model_spec, model)
    response.metadata["signature_def"].Pack(signatures)
    return response


def _identify(model_spec: Any, model: servable.Model) -> None:
    model_spec.name = model.name
    model_spec.version.value = model.version


if __name__ == "__main__":
    terminal.define_help()
    app.run(main, flags_parser=parse_flags)
