"""An authority that speaks ACME: acme2certifier over TLS, and a name server that knows one address for every name.

Usage: acme.py FOLDER. The folder has ca.pem and ca.key, which sign, and acme.pem and acme.key for the authority's own
endpoint at acme.example.test, port 14000. Ports 53 and 14000 of 127.0.0.1: meant for a network of its own.
"""

import os, socketserver, ssl, sys, threading
from wsgiref.simple_server import WSGIServer, make_server

folder = os.path.abspath(sys.argv[1])
with open(os.path.join(folder, "acme_srv.cfg"), "w") as config:
    config.write(f"""[DEFAULT]
debug: False
[Nonce]
nonce_check_disable: False
[CAhandler]
handler_module: acme2certifier.cahandlers.openssl_ca_handler
issuing_ca_key: {folder}/ca.key
issuing_ca_cert: {folder}/ca.pem
issuing_ca_crl: {folder}/crl.pem
cert_save_path: {folder}/issued
cert_validity_days: 30
[DBhandler]
dbfile: {folder}/acme_srv.db
[Challenge]
dns_server_list: ["127.0.0.1"]
[Order]
tnauthlist_support: False
[Directory]
tos_url: https://acme.example.test/terms
""")
os.makedirs(os.path.join(folder, "issued"), exist_ok=True)
os.environ.update(ACME_SRV_CONFIGFILE=os.path.join(folder, "acme_srv.cfg"), ACME2CERTIFIER_BASE_DIR=folder, ACME_SRV_DB_HANDLER="wsgi")
os.chdir(folder)

import dns.flags, dns.message, dns.rrset  # noqa: E402


class Names(socketserver.BaseRequestHandler):
    def handle(self):
        data, socket = self.request
        answer = dns.message.make_response(dns.message.from_wire(data))
        question = answer.question[0]
        if question.rdtype == 1:
            answer.answer.append(dns.rrset.from_text(question.name, 60, "IN", "A", "127.0.0.1"))
        socket.sendto(answer.to_wire(), self.client_address)


names = socketserver.ThreadingUDPServer(("127.0.0.1", 53), Names)
threading.Thread(target=names.serve_forever, daemon=True).start()

from acme2certifier.share.acme2certifier_wsgi import application  # noqa: E402


class Threads(socketserver.ThreadingMixIn, WSGIServer):
    daemon_threads = True


server = make_server("127.0.0.1", 14000, application, server_class=Threads)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(os.path.join(folder, "acme.pem"), os.path.join(folder, "acme.key"))
server.socket = context.wrap_socket(server.socket, server_side=True)
server.base_environ["HTTPS"] = "on"  # what it says its own URLs begin with
print("ready", flush=True)
server.serve_forever()
