"""A hub in a thread, as far as huggingface_hub asks for one: repositories, commits, large files, tokens. Nothing leaves the machine.

`with Hub(port) as hub: ...` serves at `hub.url`; `hub.files('owner/name')` are the files of the newest commit.
Run a process with `hub_env(url, home, token)`, for huggingface_hub reads its settings when it is imported."""
import base64, contextlib, hashlib, json, os, re, socket, threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

TOKEN = 'hf_good'

class Hub:
    "Repositories in memory."
    def __init__(self, port=0):
        # repo -> [(oid, path -> bytes)]; repo -> bool; sha256 -> bytes; requests; open connections
        self.commits, self.private, self.large, self.asked, self.lines = {}, {}, {}, [], []
        self.server = ThreadingHTTPServer(('127.0.0.1', port), type('Handler', (Handler,), dict(hub=self)))
        self.url = f'http://127.0.0.1:{self.server.server_port}'
    def __enter__(self): threading.Thread(target=self.server.serve_forever, daemon=True).start(); return self
    def __exit__(self, *_):
        self.server.shutdown(); self.server.server_close()
        for line in self.lines: # else a client that is still connected would be served on
            with contextlib.suppress(OSError): line.shutdown(socket.SHUT_RDWR)
    def files(self, repo): return self.commits[repo][-1][1]

def hub_env(url, home, token):
    "The environment of a process that knows this hub only, with caches of its own."
    kept = {k: v for k, v in os.environ.items() if not k.startswith(('HF_', 'HUGGING', 'TRANSFORMERS_'))
            and k.lower() not in ('http_proxy', 'https_proxy', 'all_proxy')}
    return (kept | dict(HF_ENDPOINT=url, HF_HOME=str(home), HF_HUB_DISABLE_XET='1', HF_HUB_DISABLE_TELEMETRY='1',
                        HF_HUB_DISABLE_PROGRESS_BARS='1', COLUMNS='200')
            | (dict(HF_TOKEN=token) if token else {}))

class Handler(BaseHTTPRequestHandler):
    hub:Hub
    protocol_version = 'HTTP/1.1'
    def log_message(self, *_): pass
    def setup(self): super().setup(); self.hub.lines.append(self.connection)

    def answer(self, code=200, body=b'', **headers):
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(code)
        for k, v in {'Content-Length': len(body), **{k.replace('_', '-'): v for k, v in headers.items()}}.items():
            self.send_header(k, str(v))
        self.end_headers()
        if self.command != 'HEAD': self.wfile.write(body)
    def refuse(self, code, why): self.answer(code, dict(error=why), X_Error_Message=why)

    def handle_any(self):
        path, body = unquote(urlsplit(self.path).path), self.rfile.read(int(self.headers.get('Content-Length') or 0))
        self.hub.asked.append(f'{self.command} {path}')
        token = (self.headers.get('Authorization') or '').removeprefix('Bearer ')
        if token not in ('', TOKEN): return self.refuse(401, 'Invalid credentials in Authorization header')
        for method, pattern, name in ROUTES:
            if found := method == self.command.replace('HEAD', 'GET') and re.fullmatch(pattern, path):
                repo = found.groupdict().get('repo')
                if method != 'GET' and not name.startswith('put') and not token:
                    return self.refuse(401, 'Invalid username or password.')
                if repo and (repo not in self.hub.commits or self.hub.private[repo] and not token):
                    return self.answer(404 if token else 401, dict(error='Repository not found'),
                                       X_Error_Code='RepoNotFound', X_Error_Message='Repository not found')
                return getattr(self, name)(body=body, **found.groupdict())
        self.refuse(404, f'this stand-in has no {self.command} {path}')
    do_GET = do_HEAD = do_POST = do_PUT = handle_any

    def create(self, body):
        asked = json.loads(body); repo = f"{asked['organization'] or 'me'}/{asked['name']}"
        if repo.startswith('forbidden/'):
            return self.refuse(403, "You don't have the rights to create a model under the namespace")
        if repo in self.hub.commits:
            return self.answer(409, dict(error='You already created this model repo', url=f'{self.hub.url}/{repo}'))
        self.hub.commits[repo], self.hub.private[repo] = (
            [('0'*40, {})], asked.get('visibility') == 'private' or bool(asked.get('private')))
        self.answer(200, dict(url=f'{self.hub.url}/{repo}', name=repo))
    def check_head(self, body):
        self.answer(200, dict(errors=[], warnings=[]) if json.loads(body)['content'].startswith('---\n')
                    else dict(errors=[dict(message='no head')], warnings=[]))
    def preupload(self, repo, rev, body):
        self.answer(200, dict(files=[dict(path=f['path'],
                                          uploadMode='lfs' if f['path'].endswith('.safetensors') else 'regular',
                                          shouldIgnore=False) for f in json.loads(body)['files']]))
    def batch(self, repo, body):
        self.answer(200, dict(transfer='basic', objects=[
            dict(oid=o['oid'], size=o['size'])
            | ({} if o['oid'] in self.hub.large else
               dict(actions=dict(upload=dict(href=f"{self.hub.url}/large/{o['oid']}"))))
            for o in json.loads(body)['objects']]))
    def put_large(self, oid, body):
        if hashlib.sha256(body).hexdigest() != oid: return self.refuse(400, 'wrong hash')
        self.hub.large[oid] = body; self.answer()
    def get_large(self, oid, body): self.answer(200, self.hub.large[oid], ETag=f'"{oid}"')
    def commit(self, repo, rev, body):
        files = dict(self.hub.files(repo))
        for line in map(json.loads, body.splitlines()):
            v = line['value']
            if line['key'] == 'file': files[v['path']] = base64.b64decode(v['content'])
            elif line['key'] == 'lfsFile': files[v['path']] = self.hub.large[v['oid']]
            elif line['key'] != 'header': return self.refuse(400, f"this stand-in has no {line['key']}")
        oid = hashlib.sha1(body).hexdigest()
        self.hub.commits[repo].append((oid, files))
        self.answer(200, dict(success=True, commitOid=oid, commitUrl=f'{self.hub.url}/{repo}/commit/{oid}'))

    def at(self, repo, rev):
        "The commit of a branch or hash, or None."
        return next((c for c in reversed(self.hub.commits[repo]) if rev in (None, 'main', c[0])), None)
    def info(self, repo, body, rev=None):
        oid, files = self.at(repo, rev)
        self.answer(200, dict(id=repo, modelId=repo, sha=oid, private=self.hub.private[repo], tags=[], downloads=0, likes=0,
                              siblings=[dict(rfilename=f) for f in files]))
    def tree(self, repo, rev, body):
        self.answer(200, [
            dict(type='file', path=p, size=len(b), oid=hashlib.sha1(b).hexdigest())
            | (dict(lfs=dict(oid=(s := hashlib.sha256(b).hexdigest()), sha256=s, size=len(b), pointerSize=130))
               if p.endswith('.safetensors') else {})
            for p, b in self.at(repo, rev)[1].items()])
    def resolve(self, repo, rev, path, body):
        oid, files = self.at(repo, rev)
        if path not in files:
            return self.answer(404, b'Entry not found', X_Error_Code='EntryNotFound',
                               X_Error_Message='Entry not found', X_Repo_Commit=oid)
        data = files[path]
        if not path.endswith('.safetensors'):
            return self.answer(200, data, X_Repo_Commit=oid, ETag=f'"{hashlib.sha1(data).hexdigest()}"')
        sha = hashlib.sha256(data).hexdigest()
        self.answer(302, b'', X_Repo_Commit=oid, X_Linked_Etag=f'"{sha}"', X_Linked_Size=len(data),
                    Location=f"{self.hub.url.replace('127.0.0.1', 'localhost')}/large/{sha}") # another host, as the real one

REPO, REV = r'(?P<repo>[^/]+/[^/]+)', r'(?P<rev>[^/]+)'
ROUTES = (('POST', '/api/repos/create', 'create'), ('POST', '/api/validate-yaml', 'check_head'),
          ('POST', f'/api/models/{REPO}/preupload/{REV}', 'preupload'),
          ('POST', rf'/{REPO}\.git/info/lfs/objects/batch', 'batch'),
          ('PUT', '/large/(?P<oid>[0-9a-f]+)', 'put_large'), ('GET', '/large/(?P<oid>[0-9a-f]+)', 'get_large'),
          ('POST', f'/api/models/{REPO}/commit/{REV}', 'commit'), ('GET', f'/api/models/{REPO}/tree/{REV}', 'tree'),
          ('GET', f'/api/models/{REPO}/revision/{REV}', 'info'),
          ('GET', f'/api/models/{REPO}', 'info'), ('GET', f'/{REPO}/resolve/{REV}/(?P<path>.+)', 'resolve'))
