"""How `describe` does at scale: `python tests/scale.py` writes results/scale.json.

- throughput: requests per second of `describe_table` against `raw`: the same requests, made beforehand, sent by as many threads over
  bare HTTP connections, in turn, on a stand-in server that takes a fixed time for an answer (median of the runs; server and clients
  share the machine). `ceiling` is what such a server can answer at most, whatever the client; `own_ms` is the processor time of
  `describe_table` for one request: opening, encoding, sending, checking, writing;
- memory: resident size when `vap-diffusion describe` begins, and its peak, for 1,000 and for 100,000 images, each in a
  process of its own; `table_mb` is what the table alone takes once it is loaded. `--memory` and `--throughput` measure
  one part again, and keep the other."""
import argparse, contextlib, http.client, json, statistics, subprocess, sys, tempfile, threading, time
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
import pandas as pd

def serve(seconds, port_file):
    "A server that waits, then answers; in a process of its own, as a real one is."
    answer = json.dumps(dict(
        id='1', object='chat.completion', created=0, model='m',
        usage=dict(prompt_tokens=1, completion_tokens=1, total_tokens=2),
        choices=[dict(index=0, finish_reason='stop',
                      message=dict(role='assistant', content='A round brown lesion with a soft border.'))])).encode()
    class Handler(BaseHTTPRequestHandler):
        protocol_version = 'HTTP/1.1'
        def do_POST(self):
            self.rfile.read(int(self.headers['Content-Length'])); time.sleep(seconds)
            self.send_response(200)
            self.send_header('Content-Type', 'application/json')
            self.send_header('Content-Length', str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)
        def log_message(self, *args): pass
    server = ThreadingHTTPServer(('localhost', 0), Handler)
    Path(port_file).write_text(str(server.server_port))
    server.serve_forever()

def folder_of(root, n, size=64, distinct=200):
    "A working folder of n rows over `distinct` images: a long table need not be a large one."
    from vap_diffusion.datasets import load_table, prepare, write_table
    from vap_diffusion.phantoms import write_phantoms
    write_phantoms(root/'p', distinct, size=size, modalities=['dermoscopy'], progress=False)
    prepare('phantoms', root/'p', root/'w', n=distinct, size=size, modality='dermoscopy', progress=False)
    table = load_table(root/'w')
    if n > distinct: # the same files under many names: 0/x, 1/x, ... by links to the folder itself
        attrs, parts = table.attrs, []
        for k in range(-(-n//distinct)):
            (root/'p'/str(k)).symlink_to('.')
            parts.append(table.assign(file_name=f'{k}/' + table.file_name))
        table = pd.concat(parts, ignore_index=True).head(n); table.attrs = attrs
        write_table(table, root/'w')
    return root/'w'

def throughput(size, wait, concurrency, n, runs):
    "(ours, raw) in requests per second, alternating, and the processor milliseconds of ours for a request."
    from vap_diffusion.datasets import load_image, load_table
    from vap_diffusion.vaps import OpenAIMLLM, describe_table, questions, user, assistant, centre_square, with_url
    with tempfile.TemporaryDirectory() as root:
        root = Path(root); w = folder_of(root, n, size, n)
        process = subprocess.Popen([sys.executable, __file__, '--serve', str(wait), '--port-file', str(root/'port')])
        try:
            while not (root/'port').exists() or not (root/'port').read_text(): time.sleep(.05)
            port, q = int((root/'port').read_text()), questions('dermoscopy')
            def bodies(file):
                "The two requests of an image, made beforehand."
                image, t = centre_square(load_image(root/'p'/file)), assistant('A round brown lesion with a soft border.')
                chats = [user(q[0], image)], [user(q[0], image), t, user(q[1]), t, user(q[2])]
                return [json.dumps(dict(model='m', messages=[with_url(m) for m in chat], max_tokens=512, temperature=0,
                                        seed=0)).encode() for chat in chats]
            made, mine = [bodies(f) for f in load_table(w).file_name], threading.local()
            def send(pair):
                if not hasattr(mine, 'server'): mine.server = http.client.HTTPConnection('localhost', port)
                for body in pair:
                    mine.server.request('POST', '/v1/chat/completions', body, {'Content-Type': 'application/json'})
                    assert json.loads(mine.server.getresponse().read())['choices']
            ours, raw, own = [], [], []
            describe_table(w, OpenAIMLLM('m', f'http://localhost:{port}/v1'), progress=False, limit=1) # Question 2, once for all runs
            for _ in range(runs):
                start = time.perf_counter()
                with ThreadPoolExecutor(concurrency) as pool: list(pool.map(send, made))
                raw.append(2*n/(time.perf_counter() - start)); mine = threading.local()
                (w/'descriptions.jsonl').unlink(missing_ok=True)
                model = OpenAIMLLM('m', f'http://localhost:{port}/v1', concurrency=concurrency)
                model.chat([user('warm up')])
                start, busy = time.perf_counter(), time.process_time()
                describe_table(w, model, progress=False)
                ours.append(2*n/(time.perf_counter() - start))
                own.append((time.process_time() - busy)/2/n*1000)
        finally: process.terminate(); process.wait()
    return statistics.median(ours), statistics.median(raw), statistics.median(own)

def resident(n):
    "Megabytes while the verb `describe` describes n images by an instant model, at their highest; the folder is drawn in another process."
    from bench_metrics import resident as memory_of
    from vap_diffusion import cli, vaps
    from vap_diffusion.datasets import load_table
    class Instant:
        name, concurrency = 'instant', 8
        def chat(self, messages):
            return f'A round brown lesion with a soft border, seen in {len(messages)} turns, on pale skin.'
    with tempfile.TemporaryDirectory() as root:
        subprocess.run([sys.executable, __file__, '--draw', str(n), '--folder', root], check=True); w = Path(root)/'w'
        vaps.make_mllm = lambda *a, **how: Instant()
        before = memory_of('VmRSS'); Path('/proc/self/clear_refs').write_text('5')            # the peak starts here
        start = time.time()
        with contextlib.redirect_stdout(sys.stderr): cli.app(['describe', str(w)], standalone_mode=False)
        seconds, peak = time.time() - start, memory_of('VmHWM')
        assert vaps.count_descriptions(w)[0] == n
        table = load_table(w).memory_usage(deep=True).sum()
    return dict(images=n, before_mb=round(before/2**20), peak_mb=round(peak/2**20), table_mb=round(table/2**20),
                images_per_second=round(n/seconds))

def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('--images', type=int, default=120, help='of the throughput')
    ap.add_argument('--many', type=int, default=100_000, help='images of the long table')
    ap.add_argument('--runs', type=int, default=3)
    ap.add_argument('--out', type=Path, default=Path('results/scale.json'))
    ap.add_argument('--serve', type=float, help=argparse.SUPPRESS)
    ap.add_argument('--port-file', help=argparse.SUPPRESS)
    ap.add_argument('--resident', type=int, help=argparse.SUPPRESS)
    ap.add_argument('--draw', type=int, help=argparse.SUPPRESS)
    ap.add_argument('--folder', help=argparse.SUPPRESS)
    ap.add_argument('--memory', action='store_true', help='only the memory; the throughput stays as it was recorded')
    ap.add_argument('--throughput', action='store_true', help='only the throughput; the memory stays as it was recorded')
    a = ap.parse_args()
    if a.serve is not None: return serve(a.serve, a.port_file)
    if a.draw: return print(folder_of(Path(a.folder), a.draw), file=sys.stderr)
    if a.resident: return print(json.dumps(resident(a.resident)))
    from vap_diffusion.quickstart import machine
    start, found = time.time(), dict(throughput=[], memory=[])
    for part in ('throughput',)*a.memory + ('memory',)*a.throughput:          # what is kept, and how that was made
        old = json.loads(a.out.read_text())
        made = old.get(f'{part}_made') or {k: old[k] for k in ('command', 'seconds', 'device', 'commit', 'versions')}
        found |= {part: old[part], f'{part}_made': made}
    for size, wait in () if a.memory else ((64, .05), (64, .5), (512, .05), (512, .5)):
        n = a.images if wait < .1 else a.images//3
        ours, raw, own = throughput(size, wait, 8, n, a.runs)
        found['throughput'].append(dict(pixels=size, seconds_per_answer=wait, concurrency=8, images=n, runs=a.runs,
                                        ours=round(ours, 1), raw=round(raw, 1), ceiling=8/wait, own_ms=round(own, 2),
                                        ratio=round(ours/raw, 3)))
        print(found['throughput'][-1], flush=True)
    for n in () if a.throughput else (1000, a.many):
        found['memory'].append(json.loads(subprocess.run([sys.executable, __file__, '--resident', str(n)],
                                                         capture_output=True, text=True, check=True).stdout))
        print(found['memory'][-1], flush=True)
    a.out.write_text(json.dumps(
        found | dict(command='python tests/scale.py' + ' --memory'*a.memory + ' --throughput'*a.throughput,
                     seconds=round(time.time() - start), **machine()), indent=1) + '\n')

if __name__ == '__main__': main()
