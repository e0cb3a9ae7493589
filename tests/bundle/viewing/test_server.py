"""A server that answers its own machine, and only what is on its list."""

import http.client
import socket
import struct
import threading
import time

import pytest

from bundle.viewing.server import Content, ViewerServer


def broken():
    raise ValueError("ct.nii.gz: cannot be read\x1b[2J")


class Volume:
    """Counts how many are read at the same time."""

    now = most = 0

    def __call__(self):
        Volume.now += 1
        Volume.most = max(Volume.most, Volume.now)
        time.sleep(0.05)
        Volume.now -= 1
        return b"voxels" * 2**20


CONTENTS = {
    "/key/large/": Content("application/octet-stream", Volume()),
    "/key/": Content("text/html", lambda: b"list"),
    "/key/0/original.nii": Content("application/octet-stream", lambda: b"voxels"),
    "/key/1/": Content("text/html", broken),
}


@pytest.fixture(scope="module")
def server():
    with ViewerServer(CONTENTS) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def ask(server, address, method="GET", **headers):
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
    connection.putrequest(method, address, skip_host=True)
    for name, value in ({"Host": f"127.0.0.1:{server.server_port}"} | headers).items():
        connection.putheader(name, value)
    connection.endheaders()
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer, body


def test_only_this_machine_is_listened_to(server):
    assert server.server_address[0] == "127.0.0.1"
    assert server.address == f"http://127.0.0.1:{server.server_port}"


def test_what_is_on_the_list_is_answered_and_may_not_be_read_by_other_sites(server):
    answer, body = ask(server, "/key/0/original.nii")
    assert (answer.status, body) == (200, b"voxels")
    assert answer.getheader("Cross-Origin-Resource-Policy") == "same-origin"
    assert answer.getheader("Access-Control-Allow-Origin") is None
    assert answer.getheader("Cache-Control") == "no-store"


@pytest.mark.parametrize(
    "address",
    [
        *("/", "/key", "/key/2/", "/KEY/", "/key/?x=1", "/key/0/../", "/key/0/original.nii/"),
        *("/etc/passwd", "/key/../../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "/key/%00"),
        *("file:///etc/passwd", "http://127.0.0.1/key/", "/key/0/original.nii\\..\\x"),
    ],
)
def test_no_other_address_is_answered(server, address):
    answer, body = ask(server, address)
    assert (answer.status, body) == (404, b"there is nothing at this address")


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1", "localhost:1", "127.0.0.1.evil.example:{port}", ""]
)
def test_a_foreign_host_is_refused(server, host):
    answer, body = ask(server, "/key/", Host=host.format(port=server.server_port))
    assert answer.status == 403 and b"its own machine only" in body


def test_localhost_is_this_machine(server):
    assert ask(server, "/key/", Host=f"localhost:{server.server_port}")[0].status == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "HEAD"])
def test_other_methods_do_nothing(server, method):
    assert ask(server, "/key/", method)[0].status == 501


def test_a_volume_that_cannot_be_read_is_told_in_one_printable_line(server):
    answer, body = ask(server, "/key/1/")
    assert answer.status == 500 and body == b"ct.nii.gz: cannot be read\\x1b[2J"
    assert answer.getheader("Content-Type") == "text/plain; charset=utf-8"


def test_large_volumes_are_read_one_after_the_other(server):
    threads = [threading.Thread(target=ask, args=(server, "/key/large/")) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Volume.most == 1


def test_a_browser_that_hangs_up_leaves_the_terminal_alone(server, capsys):
    address = server.server_address
    for _ in range(3):
        with socket.create_connection(address) as connection:
            connection.sendall(f"GET /key/large/ HTTP/1.1\r\nHost: 127.0.0.1:{address[1]}\r\n\r\n".encode())
            # closed with a reset, before or while the answer is written
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    assert ask(server, "/key/large/")[0].status == 200
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("request_line", "status"),
    [
        (b"GET /" + b"x" * 70_000 + b" HTTP/1.1", b"414"),
        (b"\x16\x03\x01\x02\x00", b"400"),
        (b"GET / x y z", b"400"),
    ],
)
def test_what_is_no_request_is_refused(server, request_line, status, capsys):
    with socket.create_connection(server.server_address, timeout=10) as connection:
        connection.sendall(request_line + b"\r\n\r\n")
        assert status in connection.recv(4096)
    assert capsys.readouterr().err == ""


def test_a_range_of_a_file_is_answered_with_all_of_it(server):
    answer, body = ask(server, "/key/0/original.nii", Range="bytes=2-3")
    assert (answer.status, body) == (200, b"voxels")
