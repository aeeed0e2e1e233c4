import sys

import pytest

from tfnas.common import user_functions
from tfnas.common.errors import UserError, unwrap_user_errors


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Writes a module of the test's own name into the current folder, which is the test's own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def write(name, text):
        (tmp_path / f"{name}.py").write_text(text)
        return tmp_path / f"{name}.py"

    return write


def test_a_function_in_the_current_folder_is_found(module):
    module("found_in_current", "def double(x):\n    return 2 * x\n")
    assert user_functions.resolve("data.source", "found_in_current:double")(4) == 8


def test_a_function_in_another_folder_is_found_once_told(module, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "found_elsewhere.py").write_text("def one():\n    return 1\n")
    with pytest.raises(UserError, match="no module 'found_elsewhere'"):
        user_functions.resolve("data.source", "found_elsewhere:one")
    user_functions.add_import_folder(tmp_path / "elsewhere")
    assert user_functions.resolve("data.source", "found_elsewhere:one")() == 1


def test_a_users_file_does_not_take_an_installed_modules_name(module):
    import json

    module("json", "raise RuntimeError('not this one')\n")
    assert user_functions.resolve("data.source", "json:dumps") is json.dumps


@pytest.mark.parametrize("text", ["load", "a.b", "a:b:c", ":load", "a:", "a b:c", "a-b:c", "1a:b", "./a.py:load"])
def test_what_is_no_such_name_is_refused(text):
    with pytest.raises(UserError, match="'data.source' must be 'package.module:function'. Received: "):
        user_functions.check_name("data.source", text)


@pytest.mark.parametrize(
    "name, code, message",
    [
        ("bad_syntax", "def load(:\n", "importing 'bad_syntax' failed: SyntaxError"),
        ("bad_value", "x = 1\ny = int('z')\n", r"importing 'bad_value' failed: ValueError: .*bad_value.py, line 2\)"),
        ("bad_import", "import not_installed_here\n", "importing 'bad_import' failed: .*not_installed_here"),
        ("bad_name", "def loads():\n    pass\n", "expected a function 'load' in 'bad_name' .*no such name"),
        ("bad_kind", "load = 3\n", "expected a function 'load' in 'bad_kind' .*Received: int"),
    ],
)
def test_a_bad_module_is_one_line(module, name, code, message):
    module(name, code)
    with pytest.raises(UserError, match=f"^data.source: {message}") as caught:
        user_functions.resolve("data.source", f"{name}:load")
    assert "\n" not in str(caught.value)


def test_a_failing_function_tells_where(module):
    file = module("failing", "def load():\n    raise KeyError('x')\n")
    load = user_functions.resolve("data.source", "failing:load")
    with pytest.raises(UserError, match=rf"data.source: 'failing:load' failed: KeyError: 'x' \({file}, line 2\)"):
        user_functions.call("data.source", "failing:load", load)


def test_a_mistake_found_inside_a_data_pipeline_comes_out_as_itself():
    import tensorflow as tf

    def refuse(x):
        raise UserError(f"data.x: {x} is bad [as ever]")

    dataset = tf.data.Dataset.range(2).map(lambda x: tf.numpy_function(refuse, [x], tf.int64))
    with pytest.raises(UserError, match=r"^data.x: 0 is bad \[as ever\]$"), unwrap_user_errors():
        list(dataset)
    with pytest.raises(ZeroDivisionError), unwrap_user_errors():
        1 // 0  # noqa: B018
