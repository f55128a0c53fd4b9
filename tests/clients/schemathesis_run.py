"""Has schemathesis make requests of every kind from the OpenAPI document of a live `berth run --api-only`.

Run by hand, for it takes half a minute and some twenty packages:

    python3 -m venv venv && venv/bin/pip install schemathesis==4.32.5
    venv/bin/python tests/clients/schemathesis_run.py target/x86_64-unknown-linux-gnu/debug/berth

Each answer must have a status, type and body that the document names, and what the document does not allow must be refused. Not
checked: whether what it allows is accepted (files are not there, VMs have not started), and the status for unknown verbs, which is
400 on Firecracker's paths. Left out: the paths that start or end the VM, and the stream of events.
"""

import asyncio
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

CHECKS = [
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
    "missing_required_header",
    "allow_header_conformance",
]
LEFT_OUT = ["/actions", "/berth/v1/start", "/berth/v1/kill", "/berth/v1/events"]


async def pump(reader, writer):
    try:
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    except OSError:
        pass
    writer.close()


async def serve(socket, ready):
    """A port that leads to the Unix socket, which schemathesis does not know."""

    async def client(reader, writer):
        to_reader, to_writer = await asyncio.open_unix_connection(socket)
        await asyncio.gather(pump(reader, to_writer), pump(to_reader, writer))

    server = await asyncio.start_server(client, "127.0.0.1", 0)
    ready(server.sockets[0].getsockname()[1])
    await server.serve_forever()


def main():
    berth = Path(sys.argv[1]).resolve()
    # Requests name files of all kinds, relative ones among them.
    with tempfile.TemporaryDirectory() as folder:
        socket = f"{folder}/api.sock"
        words = [berth, "run", "--api-only", "--log-level", "berth::api=info", "--api-sock", socket]
        program = subprocess.Popen(
            words, cwd=folder, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        # Until the socket is there.
        while "served at" not in program.stderr.readline():
            assert program.poll() is None, "berth has ended"
        threading.Thread(target=program.stderr.read, daemon=True).start()
        port, found = [], threading.Event()
        ready = lambda number: (port.append(number), found.set())
        threading.Thread(target=lambda: asyncio.run(serve(socket, ready)), daemon=True).start()
        found.wait()
        url = f"http://127.0.0.1:{port[0]}"
        words = [sys.executable, "-m", "schemathesis.cli", "run", f"{url}/berth/v1/openapi.json", "--url", url]
        words += ["--phases", "coverage,fuzzing", "--seed", "1", "--continue-on-failure", "--max-examples", "60"]
        words += ["--checks", ",".join(CHECKS)]
        for path in LEFT_OUT:
            words += ["--exclude-path", path]
        code = subprocess.run(words, cwd=folder).returncode
        assert program.poll() is None, "berth has ended"
        program.terminate()
        program.wait()
    sys.exit(code)


main()
