"""The requests that Open WebUI sends, in its order, for both kinds of connection.

Open WebUI itself is 4 GB to install; the sequence is that of its backend's routers/openai.py and routers/ollama.py (0.6).
"""

import json

import httpx

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
PARIS = "The capital of France is Paris."
TITLE = [{"role": "user", "content": "### Task:\nGenerate a concise title for the chat.\n### Output:\nJSON"}]


def test_an_openai_connection(server):
    with httpx.Client(base_url=server.url, headers={"Authorization": "Bearer none"}) as http:
        # The connection is checked, then models are listed, on every load of the page.
        models = http.get("/v1/models", headers={"Content-Type": "application/json"}).json()["data"]
        assert [model["id"] for model in models] == ["nano-chat"]
        body = {
            "stream": True, "model": "nano-chat", "messages": QUESTION, "temperature": 0, "stream_options": {"include_usage": True},
        }
        with http.stream("POST", "/v1/chat/completions", json=body) as reply:
            assert reply.status_code == 200 and "text/event-stream" in reply.headers["content-type"]
            data = [line.removeprefix("data: ") for line in reply.iter_lines() if line.startswith("data: ")]
        assert data[-1] == "[DONE]"
        chunks = [json.loads(line) for line in data[:-1]]
        assert "".join(c["choices"][0]["delta"].get("content") or "" for c in chunks if c["choices"]) == PARIS
        assert chunks[-1]["usage"]["completion_tokens"] > 3
        # Title, tags and follow-ups are asked for after the first answer, whole.
        task = {"model": "nano-chat", "messages": TITLE, "stream": False, "max_completion_tokens": 20}
        assert http.post("/v1/chat/completions", json=task).json()["choices"][0]["message"]["content"] is not None


def test_an_ollama_connection(server):
    with httpx.Client(base_url=server.url) as http:
        assert http.head("/").status_code == 200 and http.get("/").status_code == 200
        assert "version" in http.get("/api/version").json()
        entry = http.get("/api/tags").json()["models"][0]
        assert entry["name"] == "nano-chat" and entry["details"]["family"] == "gpt2"
        assert http.get("/api/ps").json()["models"][0]["model"] == "nano-chat"
        assert http.post("/api/show", json={"model": "nano-chat", "name": "nano-chat"}).status_code == 200
        body = {
            "model": "nano-chat:latest", "messages": QUESTION, "options": {"temperature": 0, "repeat_penalty": 1},
            "stream": True, "format": None, "keep_alive": "5m",
        }
        with http.stream("POST", "/api/chat", json=body) as reply:
            assert reply.headers["content-type"] == "application/x-ndjson"
            lines = [json.loads(line) for line in reply.iter_lines()]
        assert "".join(line["message"]["content"] for line in lines) == PARIS
        assert lines[-1]["done"] and lines[-1]["eval_count"] > 3
        task = {"model": "nano-chat", "messages": TITLE, "stream": False, "options": {"num_predict": 20}}
        assert http.post("/api/chat", json=task).json()["done"]
        # Unloading is asked for without a prompt.
        assert http.post("/api/generate", json={"model": "nano-chat", "prompt": "", "keep_alive": 0}).json()["done"]
