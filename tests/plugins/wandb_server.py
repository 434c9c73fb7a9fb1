"""As much of a W&B server as a run needs: it keeps the history rows that it is sent, and tells a run that resumes how
many there are and which was the last."""

from __future__ import annotations

import gzip
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

OWNER = {"id": "1", "name": "somebody"}


class WandbServer:
    """`url`; `rows`: run id → history rows as they came."""

    def __init__(self) -> None:
        self.rows: dict[str, list[str]] = {}
        self.url = ""

    def history(self, run_id: str) -> list[dict[str, Any]]:
        """A run's history rows."""
        return [json.loads(row) for row in self.rows[run_id]]

    def answer(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """What the server says to a request."""
        if path.endswith("/file_stream"):
            sent = (body.get("files") or {}).get("wandb-history.jsonl")
            rows = self.rows.setdefault(path.split("/")[-2], [])
            if sent:
                rows[sent["offset"] :] = sent["content"]
            return {}
        asked, variables = body.get("operationName") or "", body.get("variables") or {}
        if asked == "Viewer":
            return {"data": {"viewer": {**OWNER, "entity": "somebody", "username": "somebody", "flags": "{}"}}}
        if asked == "RunResumeStatus":
            rows = self.rows.get(variables["name"])
            bucket = None if rows is None else _resumable(rows)
            return {"data": {"model": {**OWNER, "entity": OWNER, "bucket": bucket}}}
        if asked == "UpsertBucket":
            project = {"id": "2", "name": "project", "entity": OWNER}
            bucket = {"id": "3", "name": variables["name"], "displayName": "", "config": "{}", "project": project}
            new = self.rows.setdefault(variables["name"], []) == []
            return {"data": {"upsertBucket": {"bucket": bucket, "inserted": new}}}
        if asked == "CreateRunFiles":
            files = [{"name": name, "uploadUrl": f"{self.url}/upload"} for name in variables["files"]]
            return {"data": {"createRunFiles": {"runID": "3", "uploadHeaders": [], "files": files}}}
        return {"data": {}}


def _resumable(rows: list[str]) -> dict[str, Any]:
    nothing = {"summaryMetrics": "{}", "config": "{}", "eventsTail": "[]", "eventsLineCount": 0, "logLineCount": 0}
    counts = {"historyLineCount": len(rows), "historyTail": json.dumps(rows[-1:]), "wandbConfig": '{"t": 1}'}
    return {"name": "", "displayName": "", "sweepName": None, "tags": [], **nothing, **counts}


@contextmanager
def wandb_server() -> Iterator[WandbServer]:
    """A server on a free port of this machine."""
    state = WandbServer()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            data = self.rfile.read(int(self.headers["Content-Length"] or 0))
            if self.headers["Content-Encoding"] == "gzip":
                data = gzip.decompress(data)
            uploaded = self.path == "/upload"
            answer = json.dumps({} if uploaded else state.answer(self.path, json.loads(data))).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        do_PUT = do_POST

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
