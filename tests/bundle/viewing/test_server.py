"""A server that answers its own machine, and only what is on its list."""

import http.client
import threading

import pytest

from bundle.viewing.server import Content, ViewerServer


def broken():
    raise ValueError("ct.nii.gz: cannot be read\x1b[2J")


CONTENTS = {
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
