"""The server's command line: what is refused before it serves."""

import socket
import subprocess
import sys

import pytest
from conftest import ROOT

from tfnas.common.errors import UserError
from tfnas.serving import server


def test_mistakes_of_the_command_line_are_one_line(monkeypatch):
    import grpc

    from tfnas.serving import servable

    done = subprocess.run([sys.executable, "-m", "tfnas.serving.server"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    words = "one of --model_base_path=FOLDER and --model_config_file=FILE expected. Received: neither"
    assert done.stderr == f"tfnas.serving.server: {words}\n"
    command = [sys.executable, "-m", "tfnas.serving.server", "--rest_port=8501"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == "tfnas.serving.server: Unknown command line flag 'rest_port'. Did you mean: rest_api_port ?\n"
    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, "aiohttp", None)
        with pytest.raises(UserError, match=r"server needs aiohttp, not installed: pip install 'tfnas\[serving\]'"):
            server._serve()
    with server.listen("--rest_api_port", "127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        words = f"^--port={port}: in use at 127.0.0.1 by another process; give another, or 0 for any free one$"
        with pytest.raises(UserError, match=words):
            server.start_grpc(servable.Models([]), "127.0.0.1", port, 9)
    assert grpc  # only what was refused was started


def test_paths_and_ports_are_looked_at_before_tensorflow_is_loaded(tmp_path):
    (tmp_path / "digits" / "1").mkdir(parents=True)
    (tmp_path / "digits" / "1" / "saved_model.pb").touch()
    nowhere = tmp_path / "digitz"
    file = tmp_path / "models.config"
    file.write_text(f'model_config_list {{ config {{ name: "a" base_path: "{nowhere}" }} }}')
    digits = f"--model_base_path={tmp_path / 'digits'}"
    in_use = "in use at 127.0.0.1 by another process; give another, or 0 for any free one"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for options, line in [
            ([f"--model_base_path={nowhere}"], f"--model_base_path: '{nowhere}' is not there"),
            (
                [f"--model_config_file={file}"],
                f"--model_config_file: {file}: base_path of 'a': '{nowhere}' is not there",
            ),
            ([digits, f"--rest_api_port={port}", "--port=0"], f"--rest_api_port={port}: {in_use}"),
            ([digits, f"--port={port}", "--rest_api_port=0"], f"--port={port}: {in_use}"),
            (
                [digits, "--port=8600", "--rest_api_port=8600"],
                "--port and --rest_api_port: two ports expected. Received: 8600 for both",
            ),
            (
                [digits, "--port=0", "--rest_api_port=0", "--address=192.0.2.1"],  # an address of documentation's
                "--rest_api_port: one that can be had at --address=192.0.2.1 expected. "
                "Received: 0 (Cannot assign requested address)",
            ),
        ]:
            program = (
                "import runpy, sys\n"
                f"sys.argv = ['tfnas.serving.server', *{options!r}]\n"
                "try:\n    runpy.run_module('tfnas.serving.server', run_name='__main__')\n"
                "except SystemExit as ended:\n    print('code', ended.code)\n"
                "print('heavy', sorted({'tensorflow', 'keras', 'aiohttp', 'grpc'} & set(sys.modules)))\n"
            )
            done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
            assert done.stderr == f"tfnas.serving.server: {line}\n"
            assert done.stdout == "code 1\nheavy []\n"


def test_several_models_by_a_config_file(tmp_path):
    file = tmp_path / "models.config"
    file.write_text('model_config_list { config { name: "a" base_path: "/x/a" model_platform: "tensorflow" } }')
    assert server._read_config(str(file)) == {"a": "/x/a"}
    for text, message in [("model_config_list {", "a ModelServerConfig expected"), ("", "with models expected")]:
        file.write_text(text)
        with pytest.raises(UserError, match=message):
            server._read_config(str(file))
