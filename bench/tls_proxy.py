"""An HTTPS proxy that leads every host to one port of this machine, for programs whose CloudWatch endpoint cannot be set.

    python -m bench.tls_proxy --port 5701 --to 5602 --certificate file.crt --key file.key

cloudwatch_exporter 0.16 knows only the public endpoints. Java takes a proxy and trusted certificates as properties, so it
connects to this proxy, which answers CONNECT, speaks TLS with a certificate of the wanted hosts, and passes the plain HTTP on.
"""

import argparse
import asyncio
import contextlib
import ssl
from pathlib import Path


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Copy one direction until it ends."""
    with contextlib.suppress(OSError, ssl.SSLError):
        while chunk := await reader.read(1 << 16):
            writer.write(chunk)
            await writer.drain()
    writer.close()


async def serve(port: int, to: int, certificate: Path, key: Path) -> None:
    """Serve until cancelled."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            await writer.drain()
            await writer.start_tls(context)
            aws_reader, aws_writer = await asyncio.open_connection("127.0.0.1", to)
            await asyncio.gather(pump(reader, aws_writer), pump(aws_reader, writer))

    server = await asyncio.start_server(connected, "127.0.0.1", port)
    print("listening", flush=True)
    await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--to", type=int, required=True, help="port of the fake CloudWatch")
    parser.add_argument("--certificate", type=Path, required=True)
    parser.add_argument("--key", type=Path, required=True)
    options = parser.parse_args()
    asyncio.run(serve(options.port, options.to, options.certificate, options.key))


if __name__ == "__main__":
    main()
