"""Open WebUI as its package installs it, on loopback, with nothing of the network but the servers it is told of."""

import json
import os
import pathlib
import socket
import subprocess
import sys
import urllib.error
import urllib.request

from server import wait_until


class OpenWebui:
    """A running Open WebUI; `openai` and `ollama` are (prefix, URL) of the connections. Its data and its log are in `folder`."""

    def __init__(self, folder, openai, ollama):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.log = pathlib.Path(folder) / "open-webui.log"
        environment = {
            "PATH": os.environ["PATH"], "LANG": "C.UTF-8", "HOME": str(folder), "DATA_DIR": f"{folder}/data",
            # One user, who is signed in.
            "WEBUI_AUTH": "false", "WEBUI_SECRET_KEY": "of this run",
            # The variant without local speech, documents and embeddings, whose models would have to be downloaded.
            "USE_SLIM_DOCKER": "true", "OFFLINE_MODE": "true", "HF_HUB_OFFLINE": "1", "ANONYMIZED_TELEMETRY": "false",
            "DO_NOT_TRACK": "true", "SCARF_NO_ANALYTICS": "true", "NO_PROXY": "127.0.0.1",
            "OPENAI_API_BASE_URLS": ";".join(f"{url}/v1" for _, url in openai),
            "OPENAI_API_KEYS": ";".join("none" for _ in openai),
            "OPENAI_API_CONFIGS": json.dumps({str(i): {"prefix_id": prefix} for i, (prefix, _) in enumerate(openai)}),
            "OLLAMA_BASE_URLS": ";".join(url for _, url in ollama),
            "OLLAMA_API_CONFIGS": json.dumps({str(i): {"prefix_id": prefix} for i, (prefix, _) in enumerate(ollama)}),
        }
        command = [pathlib.Path(sys.executable).parent / "open-webui", "serve", "--host", "127.0.0.1", "--port", str(port)]
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
            )
        try:
            wait_until(self._answers, "Open WebUI", 240)
        except AssertionError:
            self.stop()
            raise

    def _answers(self):
        assert self.process.poll() is None, self.log.read_text(errors="replace")[-4000:]
        try:
            return urllib.request.urlopen(f"{self.url}/health", timeout=5).status == 200
        except (urllib.error.URLError, OSError):
            return False

    def stop(self):
        self.process.terminate()
        self.process.wait(60)
