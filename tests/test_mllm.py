"""Real back ends: tiny models of three families through transformers, `transformers serve`, and a server that fails in every way."""
import json, os, shutil, subprocess, sys, time
import numpy as np, pytest
import tiny
from test_vaps import KEY, Answers, message, work
from vap_diffusion.vaps import OpenAIMLLM, ServerError, TransformersMLLM, describe_table, flaw, load_descriptions, make_mllm, user

RNG = np.random.default_rng(0)
IMAGES = [RNG.integers(0, 256, (h, w, 3), dtype=np.uint8) for h, w in ((64, 64), (40, 90), (120, 50))]

@pytest.fixture(scope='session', params=[tiny.qwen, tiny.smolvlm, tiny.llava_onevision],
                ids=['qwen2.5-vl', 'smolvlm', 'llava-onevision'])
def model(request, tmp_path_factory):
    return TransformersMLLM(str(request.param(tmp_path_factory.mktemp('model'))), max_new_tokens=12, batch_size=3)

def test_greedy_answers_do_not_depend_on_the_batch(model):
    chats = ([[user(f'Describe {"briefly " * i}what you see.', image)] for i, image in enumerate(IMAGES)]
             + [[user('What can such images show?')]])
    model.usage = (0, 0, 0)
    alone = [model.chat(c) for c in chats]
    assert model.chat_many(chats[:3]) == alone[:3] and model.chat_many(chats[3:]) == alone[3:] and any(alone)
    assert model.usage[0] == 8 and model.usage[1] > model.usage[2] > 0

def test_the_image_is_seen(model):
    "Logits of the first new token differ between images."
    import torch
    from vap_diffusion.vaps import with_pil
    def logits(image):
        inputs = model.processor.apply_chat_template([with_pil(user('Describe it.', image))], tokenize=True,
                                                     return_dict=True, return_tensors='pt', add_generation_prompt=True)
        with torch.inference_mode(): return model.model(**inputs).logits[0, -1]
    assert not torch.allclose(logits(IMAGES[0]), logits(255 - IMAGES[0]))

def test_sampling_depends_on_the_seed(model):
    one, same, other = (model.chat([user('Describe.', IMAGES[0])], temperature=2., seed=s) for s in (1, 1, 2))
    assert one == same != other

def test_sampled_answers_do_not_depend_on_the_batch(model):
    "A run that is killed goes on with other batches: its lines must be the same."
    chats = [[user(f'Describe {"briefly " * i}what you see.', image)] for i, image in enumerate(IMAGES)]
    alone = [model.chat(c, temperature=1.5, seed=3) for c in chats]
    assert (model.chat_many(chats, 1.5, 3) == alone
            and model.chat_many(chats[::-1], 1.5, 3) == alone[::-1] != [model.chat(c) for c in chats[::-1]])

def test_sampling_has_the_probabilities_of_softmax(model, monkeypatch):
    "The noise turns the likeliest token into a draw: 3000 seeds against softmax(scores / temperature)."
    import torch
    scores, drawn = torch.tensor([[2., 1., 0., -1.]]), []
    def generate(**kw):
        drawn.append(int(kw['logits_processor'][0](None, scores).argmax()))
        return torch.zeros(1, kw['input_ids'].shape[1] + 1, dtype=torch.long)
    monkeypatch.setattr(model.model, 'generate', generate)
    monkeypatch.setattr(model.processor, 'apply_chat_template', lambda *a, **kw: Inputs())
    for seed in range(3000): model.chat([user('Describe.')], temperature=2., seed=seed)
    share = np.bincount(drawn, minlength=4)/len(drawn)
    assert abs(share - torch.softmax(scores[0]/2, 0).numpy()).max() < .03, share

class Inputs(dict):
    "Three token ids, as a processor gives them."
    def __init__(self):
        import torch
        super().__init__(input_ids=torch.zeros(1, 3, dtype=torch.long), attention_mask=torch.ones(1, 3, dtype=torch.long))
    def to(self, *args, **kw): return self

def test_a_batch_that_does_not_fit_is_halved(model, monkeypatch):
    import torch
    chats, sizes, real = [[user('Describe.', image)] for image in IMAGES], [], model.model.generate
    whole = model.chat_many(chats)
    def small(limit):
        def generate(**kw):
            sizes.append(len(kw['input_ids']))
            if sizes[-1] > limit: raise torch.OutOfMemoryError('CUDA out of memory')
            return real(**kw)
        return generate
    monkeypatch.setattr(model, 'batch_size', 3); monkeypatch.setattr(model.model, 'generate', small(1))
    assert model.chat_many(chats) == whole and sizes == [3, 1, 1, 1] and model.batch_size == 1
    monkeypatch.setattr(model.model, 'generate', small(0))
    assert model.name in message(MemoryError, lambda: model.chat_many(chats))

def test_bfloat16(model, tmp_path):
    import torch
    half = TransformersMLLM(model.name[3:], max_new_tokens=4, dtype=torch.bfloat16)
    assert half.model.dtype == torch.bfloat16 and isinstance(half.chat([user('Describe.', IMAGES[0])]), str)

def test_a_table_is_described_in_batches(model, work):
    "Random weights say nonsense: what counts is that each image gets a line, good or failed."
    import warnings
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        words = describe_table(work, model, progress=False, steps=(1, 3))
    assert len(words) == 18 and ((words.t_mix != '') ^ (words.failed != '')).all()

def test_options_reach_the_back_end(tmp_path):
    import torch
    made = make_mllm(f'hf:{tiny.smolvlm(tmp_path)}', batch_size=3, dtype='bfloat16', device_map='cpu', max_tokens=7, timeout=None)
    assert (made.batch_size, made.max_new_tokens, made.model.dtype, made.model.device.type) == (3, 7, torch.bfloat16, 'cpu')
    made = make_mllm('openai:m@http://localhost:9/v1', timeout=300., concurrency=16, max_tokens=7)
    assert (made.client.timeout, made.concurrency, made.max_tokens) == (300, 16, 7)
    assert '--dtype float12' in message(ValueError, lambda: make_mllm(f'hf:{tmp_path}', dtype='float12'))

@pytest.mark.parametrize('name, option', [
    ('measure', dict(batch_size=2)), ('hf:x', dict(timeout=3.)), ('hf:x', dict(concurrency=3)),
    ('openai:m@http://localhost:9/v1', dict(device_map='auto')), ('openai:m@http://localhost:9/v1', dict(dtype='float16'))])
def test_an_option_that_does_not_fit(name, option):
    text = message(ValueError, lambda: make_mllm(name, **option))
    assert name in text and '--' + next(iter(option)).replace('_', '-') in text and 'leave it out' in text

# --- a server that fails ---------------------------------------------------------------------------------------------

GOOD = 'A round brown lesion.'
FAULTS = {'malformed JSON': b'{"choices": [', 'no JSON': b'<html>busy</html>', 'an empty choice': b'{"choices": []}',
          'no text': b'{"choices": [{"message": {"content": null}}]}', '429': 429, '500': 500, '503': 503}

@pytest.mark.parametrize('fault', FAULTS)
def test_one_fault_is_survived(fault):
    with Answers(FAULTS[fault], GOOD) as server:
        assert OpenAIMLLM('m', server.url).chat([user('hello')]) == GOOD and len(server.seen) == 2

@pytest.mark.parametrize('fault', FAULTS)
def test_a_fault_that_stays_ends_in_one_line(fault, monkeypatch):
    monkeypatch.setenv('OPENAI_API_KEY', KEY)
    with Answers(FAULTS[fault]) as server:
        text = message(ServerError, lambda: OpenAIMLLM('m', server.url, max_retries=1).chat([user('hello')]))
        assert server.url in text and len(server.seen) == 2

ODD = [dict(choices='abc'), dict(choices={'0': 1}), dict(choices=[None]), [1], 3, 'text',
       dict(choices=[dict(message='x')]), dict(choices=[dict(message=dict(content=5))]),
       dict(choices=[dict(message=dict(content=[dict(type='text', text='Round.')]))]), dict(error='overloaded')]

@pytest.mark.parametrize('body', ODD, ids=map(str, range(len(ODD))))
def test_odd_answers_end_in_one_line(body):
    with Answers(json.dumps(body).encode()) as server:
        assert 'no chat answer' in message(
            ServerError, lambda: OpenAIMLLM('m', server.url, max_retries=0).chat([user('hello')]))

def test_odd_counts_do_no_harm():
    for usage in (dict(prompt_tokens='12', completion_tokens=None), [1], 'x', None):
        with Answers(json.dumps(dict(choices=[dict(message=dict(content=GOOD))], usage=usage)).encode()) as server:
            model = OpenAIMLLM('m', server.url); assert model.chat([user('hello')]) == GOOD and model.usage == (1, 0, 0)

@pytest.mark.parametrize('choice, reason', [
    (dict(message=dict(content=None, refusal='This I will not do.')), 'refusal'),
    (dict(message=dict(content=None), finish_reason='content_filter'), 'empty'),
    (dict(message=dict(content=None), finish_reason='length'), 'empty')])
def test_an_image_that_the_server_refuses_is_recorded_and_the_run_goes_on(work, choice, reason):
    with (Answers(*[GOOD]*9, *[json.dumps(dict(choices=[choice])).encode()]*3, GOOD) as server,
          pytest.warns(UserWarning, match=f'about 1 images .{reason}: 1')):
        words = describe_table(work, OpenAIMLLM('m', server.url), progress=False, concurrency=1)
    assert len(words) == 18 and (words.t_mix == GOOD).sum() == 17 and words.failed.str.startswith(reason).sum() == 1

@pytest.mark.parametrize('fault', [400, 413, 422, 500, b'{"choices": ['], ids=str)
def test_a_request_that_always_fails_is_recorded_and_the_run_goes_on(work, fault):
    with Answers(*[GOOD]*9, fault, GOOD) as server, pytest.warns(UserWarning, match='about 1 images .server: 1'):
        words = describe_table(work, OpenAIMLLM('m', server.url, max_retries=0), progress=False, concurrency=1)
    assert (words.t_mix == GOOD).sum() == 17 and words.failed.str.startswith(f'server: {server.url}').sum() == 1

@pytest.mark.parametrize('status, asked', [(401, 10), (403, 10), (404, 10), (429, 10), (400, 17), (500, 17)])
def test_what_is_no_matter_of_one_image_stops_the_run(work, status, asked):
    "At once, or after eight in a row; nothing is recorded as failed."
    with Answers(*[GOOD]*9, status) as server:
        message(ServerError, lambda: describe_table(work, OpenAIMLLM('m', server.url, max_retries=0), progress=False, concurrency=1))
        assert len(server.seen) == asked and len(load_descriptions(work)) == 3 and set(load_descriptions(work).failed) == {''}

def test_an_image_is_encoded_once(work, monkeypatch):
    import vap_diffusion.vaps as vaps
    made, real = [], vaps.data_url
    monkeypatch.setattr(vaps, 'data_url', lambda image: made.append(1) or real(image))
    with Answers(GOOD) as server:
        describe_table(work, OpenAIMLLM('m', server.url, concurrency=3), progress=False)
        urls = [p['image_url']['url'] for r in server.seen for m in r['body']['messages'] for p in m['content']
                if p['type'] == 'image_url']
    assert len(made) == 18 == len(set(urls)) and len(urls) == 36

@pytest.mark.parametrize('code', ['content_filter', 'content_policy_violation'])
def test_a_filter_before_the_model_is_a_refusal(code):
    body = json.dumps(dict(error=dict(code=code, message='Your request was rejected.'))).encode()
    server = Rude(reply(body, '400 Bad Request'))
    assert flaw(OpenAIMLLM('m', server.url).chat([user('hello')])) == 'refusal'

def test_what_the_server_says_of_an_error_is_passed_on_without_the_key(monkeypatch):
    monkeypatch.setenv('OPENAI_API_KEY', KEY)
    body = json.dumps(dict(error=dict(code='context_length_exceeded', message=f'At most 4096 tokens,\n not 5000; key {KEY}'))).encode()
    server = Rude(reply(body, '400 Bad Request'), reply(FINE))
    text = message(ServerError, lambda: OpenAIMLLM('m', server.url).chat([user('hello')]))
    # it would be refused again
    assert ('At most 4096 tokens, not 5000; key ...' in text and 'tried again' not in text
            and len(server.times) == 1)

class Rude:
    "A server on a plain socket: for each connection the next of `acts`, a function of the connection."
    def __init__(self, *acts):
        import socket, threading
        self.acts, self.times, self.socket = list(acts), [], socket.create_server(('localhost', 0))
        self.url = f'http://localhost:{self.socket.getsockname()[1]}/v1'
        threading.Thread(target=self.serve, daemon=True).start()
    def serve(self):
        for act in self.acts:
            try: c = self.socket.accept()[0]
            except OSError: return
            self.times.append(time.time())
            got = b''
            while b'\r\n\r\n' not in got: got += c.recv(65536)
            head, body = got.split(b'\r\n\r\n', 1)
            length = int(next(l for l in head.split(b'\r\n') if l.lower().startswith(b'content-length')).split(b':')[1])
            while len(body) < length: body += c.recv(65536)
            act(c); c.close()

def reply(data, status='200 OK', length=None, more=''):
    head = (f'HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {length or len(data)}\r\n'
            f'{more}Connection: close\r\n\r\n').encode()
    return lambda c: c.sendall(head + data)

FINE = json.dumps(dict(id='1', object='chat.completion', created=0, model='m',
                       choices=[dict(index=0, finish_reason='stop', message=dict(role='assistant', content=GOOD))])).encode()

def test_half_a_body_and_a_dropped_connection_and_silence():
    server = Rude(reply(FINE[:40], length=len(FINE)), lambda c: None, lambda c: time.sleep(3), reply(FINE))
    assert OpenAIMLLM('m', server.url, timeout=2).chat([user('hello')]) == GOOD and not server.acts[4:] and len(server.times) == 4

def test_retry_after_is_obeyed():
    server = Rude(reply(b'{}', '429 Too Many Requests', more='Retry-After: 2\r\n'), reply(FINE))
    assert OpenAIMLLM('m', server.url).chat([user('hello')]) == GOOD
    assert 1.9 < server.times[1] - server.times[0] < 30        # without that header it would be half a second at most

def test_a_long_wait_is_passed_on():
    "More than the client waits for: not asked again before its time."
    server = Rude(reply(b'{}', '429 Too Many Requests', more='Retry-After: 3600\r\n'), reply(FINE))
    assert ('asks to wait 3600 s' in message(ServerError, lambda: OpenAIMLLM('m', server.url).chat([user('hello')]))
            and len(server.times) == 1)

@pytest.mark.parametrize('key', [KEY + '\n', KEY + '\r', ' ' + KEY])
def test_white_space_around_the_key(key, monkeypatch, caplog):
    "As files and shells leave it; the HTTP client would write such a header into its log."
    monkeypatch.setenv('OPENAI_API_KEY', key); caplog.set_level('DEBUG')
    with Answers(GOOD) as server:
        assert (OpenAIMLLM('m', server.url).chat([user('hello')]) == GOOD
                and server.seen[0]['key'] == f'Bearer {KEY}')
    assert KEY not in caplog.text and caplog.records

@pytest.mark.parametrize('key', [KEY + '\u201d', KEY + '\n' + KEY])
def test_a_key_that_is_none(key, monkeypatch, caplog):
    monkeypatch.setenv('OPENAI_API_KEY', key); caplog.set_level('DEBUG')
    assert 'OPENAI_API_KEY' in message(ValueError, lambda: OpenAIMLLM('m', 'http://localhost:9/v1'))
    assert KEY not in caplog.text

@pytest.mark.parametrize('url', [f'http://me:{KEY}@localhost:9/v1', f'http://{KEY}@localhost:9/v1',
                                 f'http://localhost:9/v1?api-key={KEY}'])
def test_no_key_in_the_url(url): assert 'OPENAI_API_KEY' in message(ValueError, lambda: make_mllm(f'openai:m@{url}'))

def test_the_key_is_nowhere(work, monkeypatch, tmp_path, caplog):
    "Not in a file, not in a log, not in a traceback, whatever the server says."
    monkeypatch.setenv('OPENAI_API_KEY', KEY)
    with Answers(*[GOOD]*12, 401) as server:
        done = subprocess.run([sys.executable, '-m', 'vap_diffusion.cli', '--debug', 'describe', str(work),
                               '--mllm', f'openai:m@{server.url}', '--yes'],
                              capture_output=True, text=True, env=os.environ | dict(OPENAI_LOG='debug'))
    assert done.returncode and server.seen[0]['key'] == f'Bearer {KEY}'
    assert KEY not in done.stdout + done.stderr
    assert not [p for p in work.rglob('*') if p.is_file() and KEY.encode() in p.read_bytes()]

def test_never_more_under_way_than_the_server_is_to_answer(work):
    "More threads than that make images ready; the semaphore lets eight through, or as many as are asked for."
    for concurrency, how in ((4, {}), (8, dict(concurrency=2))):
        with Answers(GOOD, wait=.05) as server:
            model, now, most, real = OpenAIMLLM('m', server.url, concurrency=concurrency), [], [], OpenAIMLLM.request
            def request(*args):
                now.append(1)
                most.append(len(now))
                answer = real(model, *args)
                now.pop()
                return answer
            model.request = request
            describe_table(work, model, progress=False, **how)
            (work/'descriptions.jsonl').unlink()
            (work/'t2.json').unlink()
        assert max(most) == how.get('concurrency', concurrency)

def test_many_are_under_way_at_once(work):
    with Answers(GOOD, wait=.1) as server:
        model = OpenAIMLLM('m', server.url, concurrency=6)
        describe_table(work, model, progress=False)
    assert len(server.seen) == 39 and 4 <= server.most <= 6 and model.usage[0] == 39

# --- transformers serve ----------------------------------------------------------------------------------------------

def test_transformers_serve(work, tmp_path):
    "The real server of transformers with a tiny model, in a process of its own."
    pytest.importorskip('fastapi', reason='transformers serve needs fastapi and uvicorn')
    pytest.importorskip('uvicorn', reason='transformers serve needs fastapi and uvicorn')
    import httpx, socket
    with socket.socket() as s: s.bind(('localhost', 0)); port = s.getsockname()[1]
    folder, log = tiny.qwen(tmp_path/'tiny-qwen'), open(tmp_path/'serve.log', 'w')
    server = subprocess.Popen([shutil.which('transformers', path=os.path.dirname(sys.executable)), 'serve',
                               '--host', 'localhost', '--port', str(port), '--device', 'cpu'],
                              stdout=log, stderr=log, cwd=tmp_path)
    try:
        for _ in range(1200):
            assert server.poll() is None, (tmp_path/'serve.log').read_text()[-2000:]
            try: httpx.get(f'http://localhost:{port}/health', timeout=1); break
            except httpx.HTTPError: time.sleep(.5)
        else: raise TimeoutError('no server after ten minutes')
        model = OpenAIMLLM(str(folder), f'http://localhost:{port}/v1', max_tokens=8, concurrency=2, max_retries=1)
        said = model.chat([user('Describe the image.', IMAGES[0])])
        assert isinstance(said, str) and model.usage[0] == 1
        assert said == model.chat([user('Describe the image.', IMAGES[0])])
        import warnings
        with warnings.catch_warnings():
            warnings.simplefilter('ignore'); words = describe_table(work, model, progress=False, steps=(1,), limit=4)
        assert len(words) == 4
    except BaseException: print((tmp_path/'serve.log').read_text()[-3000:]); raise
    finally:
        server.terminate()
        try: server.wait(120)
        except subprocess.TimeoutExpired: server.kill(); server.wait()
        log.close()

def test_parameters_that_a_model_does_not_take_are_given_otherwise():
    "As OpenAI's models that think first: each refusal names one parameter."
    refuse = lambda said: reply(json.dumps(dict(error=dict(code='unsupported_parameter', message=said))).encode(),
                                '400 Bad Request')
    server = Rude(refuse("Unsupported parameter: 'max_tokens' is not supported with this model. "
                         "Use 'max_completion_tokens' instead."),
                  refuse("Unsupported value: 'temperature' does not support 0 with this model."), reply(FINE), reply(FINE))
    model = OpenAIMLLM('m', server.url)
    assert model.chat([user('hello')]) == GOOD and model.renamed == dict(max_tokens='max_completion_tokens', temperature=None)
    assert model.chat([user('again')]) == GOOD and len(server.times) == 4                          # it is not asked in the old way again
