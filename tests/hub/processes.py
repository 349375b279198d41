"""Fresh Python processes that share their imports, so that a test of what a stranger sees costs no seconds.

A server process imports once what many cases need, and forks for each of them: none sees what another did.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

__all__ = ["PARSE_ONCE", "WITHOUT_HF_MM", "FreshProcesses", "on_hub"]

SERVER = r"""
import json, os, sys, traceback
names = {"__name__": "__main__"}
exec(compile(json.loads(sys.stdin.readline()), "<shared>", "exec"), names)
print("ready", flush=True)
for line in sys.stdin:
    code, output = json.loads(line)
    child = os.fork()
    if not child:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # who asks for an answer gets none
        for stream in (1, 2):
            os.dup2(os.open(f"{output}.{stream}", os.O_WRONLY | os.O_CREAT), stream)
        status = 0
        try:
            exec(compile(code, "<case>", "exec"), names)
        except BaseException:
            traceback.print_exc()
            status = 1
        sys.stdout.flush()
        os._exit(status)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
os._exit(0)  # to take down all that was imported costs a second
"""

# The installed package, its checkout and a stray copy are all out of reach then.
WITHOUT_HF_MM = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "hf_mm":
            raise ModuleNotFoundError("No module named 'hf_mm' (blocked)", name="hf_mm")

sys.meta_path.insert(0, Blocker())
"""

# transformers parses a file of remote code twice in each `from_pretrained`, half a second each time.
PARSE_ONCE = """
import functools, transformers.dynamic_module_utils
transformers.dynamic_module_utils.get_imports = functools.cache(transformers.dynamic_module_utils.get_imports)
"""


class FreshProcesses:
    """A server of forks; use it in a `with` statement.

    Args:
        shared: Code that the server runs once, imports above all.
        folder: Where the cases run and their output is kept.
        path: `PYTHONPATH`.
        **environment: Other variables to set.
    """

    def __init__(self, shared: str, folder: Path, path: str = "", **environment: str) -> None:
        self.shared, self.folder, self.cases = shared, folder, 0
        quiet = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONDONTWRITEBYTECODE": "1"}
        self.environment = os.environ | quiet | {"PYTHONPATH": path} | environment

    def __enter__(self) -> "FreshProcesses":
        self.server = subprocess.Popen(
            [sys.executable, "-c", SERVER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=self.folder,
            env=self.environment,
            text=True,
        )
        assert self._ask(self.shared) == "ready", "the shared imports failed, see above"
        return self

    def __exit__(self, *error: object) -> None:
        self.server.stdin.close()
        self.server.wait()

    def run(self, code: str) -> str:
        """Run `code` as a script in a fork; returns what it printed to stdout.

        Raises:
            AssertionError: It raised or was killed; the message is all that it printed.
        """
        self.cases += 1
        output = str(self.folder / f"case-{self.cases}")
        status = self._ask([code, output])
        printed, errors = (Path(f"{output}.{stream}").read_text(encoding="utf-8") for stream in (1, 2))
        assert status == "0", f"exit status {status} of:\n{code}\n{printed}\n{errors}"
        return printed

    def value(self, code: str) -> Any:
        """Run `code`; returns the last line that it printed, which is JSON."""
        return json.loads(self.run(code).splitlines()[-1])

    def _ask(self, message: object) -> str:
        self.server.stdin.write(json.dumps(message) + "\n")
        self.server.stdin.flush()
        return self.server.stdout.readline().strip()


def on_hub(endpoint: str, folder: Path, shared: str, path: str = "") -> FreshProcesses:
    """Fresh processes whose Hub is at `endpoint`, with a token and a cache of their own in `folder`."""
    variables = {"HF_ENDPOINT": endpoint, "HF_HOME": str(folder / "hf"), "HF_TOKEN": "a-token"}
    variables |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    return FreshProcesses(shared, folder, path, **variables)
