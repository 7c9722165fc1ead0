"""Describing images: servers that fail, runs that are stopped, files of other models. Nothing is lost, asked twice or given away."""
import json, os, signal, subprocess, sys, threading, time
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
import numpy as np, pytest
from vap_diffusion.datasets import prepare
from vap_diffusion.measuring import measure_image
from vap_diffusion.phantoms import ATTRIBUTES, CLASSES, make_phantom, write_phantoms
from vap_diffusion.vaps import (PROMPTS, MeasuringDescriber, OpenAIMLLM, ServerError, TransformersMLLM,
                                VisualAttributePrompter, describe_table, load_descriptions, make_mllm,
                                read_attributes, user)

KEY = 'sk-secret-1234567890'

class Answers:
    "A real server on a real port; `script` holds the answers: a text, a status, or bytes that are sent as they are."
    def __init__(self, *script, wait=0):
        self.script, self.seen, self.now, self.most, self.lock, this = list(script), [], 0, 0, threading.Lock(), self
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers['Content-Length'])))
                with this.lock:
                    this.seen.append(dict(body=body, key=self.headers['Authorization'], path=self.path))
                    answer = this.script.pop(0) if len(this.script) > 1 else this.script[0]
                    this.now += 1; this.most = max(this.most, this.now)      # questions under way
                time.sleep(wait)
                with this.lock: this.now -= 1
                if isinstance(answer, int):
                    data = json.dumps(dict(error=dict(
                        message=f'Incorrect API key provided: {self.headers["Authorization"]}'))).encode()
                else:
                    data = answer if isinstance(answer, bytes) else json.dumps(dict(
                        id='1', object='chat.completion', created=0, model=body['model'],
                        choices=[dict(index=0, finish_reason='stop', message=dict(role='assistant', content=answer))])).encode()
                try:
                    self.send_response(answer if isinstance(answer, int) else 200)
                    self.send_header('Content-Type', 'application/json')
                    self.end_headers()
                    self.wfile.write(data)
                except OSError: pass                                         # the client has hung up
            def log_message(self, *args): pass
        self.server = ThreadingHTTPServer(('localhost', 0), Handler)
        self.url = f'http://localhost:{self.server.server_port}/v1'
    def __enter__(self): threading.Thread(target=self.server.serve_forever, daemon=True).start(); return self
    def __exit__(self, *args): self.server.shutdown(); self.server.server_close()

def message(error, call):
    "The one line of the error that `call` must raise: without the key, and without a second traceback."
    with pytest.raises(error) as caught: call()
    text = str(caught.value)
    assert '\n' not in text and KEY not in text, text
    assert caught.value.__suppress_context__ or caught.value.__context__ is None, 'no second traceback'
    return text

def message_of(error, call):
    with pytest.raises(error) as caught: call()
    return str(caught.value)

@pytest.fixture
def work(tmp_path):
    "A working folder with 18 phantoms of all modalities."
    write_phantoms(tmp_path/'phantoms', 18, progress=False)
    prepare('phantoms', tmp_path/'phantoms', tmp_path/'w', n=18, progress=False)
    return tmp_path/'w'

# --- servers ---------------------------------------------------------------------------------------------------------

def test_no_server():
    text = message(ConnectionError, lambda: OpenAIMLLM('llava', 'http://localhost:9/v1', max_retries=0).chat([user('hello')]))
    assert 'http://localhost:9/v1' in text and 'start the server' in text and '--mllm' in text

def test_a_server_that_fails_for_a_while_is_asked_again():
    with Answers(500, 503, 'fine') as server:
        assert OpenAIMLLM('llava', server.url).chat([user('hello')]) == 'fine'
        assert len(server.seen) == 3

def test_a_server_that_keeps_failing():
    with Answers(500) as server:
        text = message(ServerError, lambda: OpenAIMLLM('llava', server.url, max_retries=1).chat([user('hello')]))
        assert '500' in text and server.url in text and len(server.seen) == 2

def test_a_server_that_hangs():
    with Answers('late', wait=2) as server:
        assert '0.3 s' in message(ServerError, lambda: OpenAIMLLM('llava', server.url, timeout=.3, max_retries=0).chat([user('hello')]))

@pytest.mark.parametrize('status', [401, 403])
def test_a_wrong_key_is_not_shown(monkeypatch, status):
    monkeypatch.setenv('OPENAI_API_KEY', KEY)
    with Answers(status) as server:                                          # the server's own message repeats the key
        assert 'OPENAI_API_KEY' in message(ServerError, lambda: OpenAIMLLM('llava', server.url).chat([user('hello')]))
        assert server.seen[0]['key'] == f'Bearer {KEY}'

@pytest.mark.parametrize('status', [400, 422, 500])
def test_no_other_error_shows_the_key(monkeypatch, status):
    monkeypatch.setenv('OPENAI_API_KEY', KEY)
    with Answers(status) as server:
        assert str(status) in message(
            ServerError, lambda: OpenAIMLLM('llava', server.url, max_retries=0).chat([user('hello')]))

def test_without_a_key(monkeypatch):
    monkeypatch.delenv('OPENAI_API_KEY', raising=False)
    with Answers('fine') as server:
        assert OpenAIMLLM('llava', server.url).chat([user('hello')]) == 'fine'      # one's own server wants none
    with Answers(401) as server:
        assert 'OPENAI_API_KEY' in message(ServerError, lambda: OpenAIMLLM('llava', server.url).chat([user('hello')]))

def test_errors_of_a_server_are_no_other_errors():
    "Not a PermissionError, which the command line takes for one of a file."
    for status in (400, 401, 403, 404, 429, 500):
        with Answers(status) as server, pytest.raises(ServerError) as caught:
            OpenAIMLLM('llava', server.url, max_retries=0).chat([user('hello')])
        assert not isinstance(caught.value, OSError) and caught.value.stops == (status in (401, 403, 404, 429))

def test_an_unknown_model():
    with Answers(404) as server:
        assert 'llava' in message(ServerError, lambda: OpenAIMLLM('llava', server.url).chat([user('hello')]))

@pytest.mark.parametrize('answer', [b'<html>Welcome to nginx</html>', b'{"choices": []}', b'{}',
                                    b'{"choices": [{"message": {"content": null}}]}'])
def test_a_server_of_another_kind(answer):
    with Answers(answer) as server:
        assert '--mllm' in message(
            ServerError, lambda: OpenAIMLLM('llava', server.url, max_retries=0).chat([user('hello')]))

def test_the_key_is_in_no_file(work, monkeypatch):
    monkeypatch.setenv('OPENAI_API_KEY', KEY)
    with Answers('a brown lesion') as server: describe_table(work, OpenAIMLLM('llava', server.url), progress=False)
    assert KEY not in (work/'descriptions.jsonl').read_text() and set(load_descriptions(work).t_mix) == {'a brown lesion'}
    texts = [[p for m in r['body']['messages'] for p in m['content']] for r in server.seen]
    assert len(texts) == 2*18 + 3                                            # Question 2 once for each modality
    assert all(p[0]['image_url']['url'].startswith('data:image/png;base64,') for p in texts if len(p) > 1)

# --- models ----------------------------------------------------------------------------------------------------------

def test_unknown_words():
    for word in ('wishful', 'hf:', 'openai:llava', 'openai:@http://localhost', 'openai:llava@localhost:8000'):
        assert '--mllm' in message(ValueError, lambda: make_mllm(word)), word
    assert make_mllm('openai:org/model@v2@http://localhost:1/v1').model == 'org/model@v2'

def test_no_model_in_a_folder(tmp_path):
    assert f'hf:{tmp_path}' in message(ValueError, lambda: TransformersMLLM(str(tmp_path)))

def test_the_describer_refuses_what_it_cannot_answer():
    describer, image = MeasuringDescriber(), np.zeros((8, 8, 3), np.uint8)
    assert '--mllm' in message_of(ValueError, lambda: describer.chat([user('Is it benign?', image)]))
    assert 'image' in message_of(ValueError, lambda: describer.chat([user(PROMPTS["dermoscopy"].questions[0])]))
    assert 'mri' in message_of(ValueError, lambda: describer.measure(image, 'mri'))
    for bad in (image.astype(float), image[None], image[..., :2], image[:0]):
        assert 'uint8' in message_of(ValueError, lambda: describer.measure(bad))

def test_the_describer_says_what_is_measured():
    "Also when it is asked about two images in turn, or again about a changed answer."
    describer, images = MeasuringDescriber(), [make_phantom(CLASSES['colonoscopy'][i], 900_000 + i).image for i in (0, 1)]
    for image in (*images, *images[::-1]):
        read = describer.measure(image, 'colonoscopy'); assert read == measure_image(image, 'colonoscopy')
        read['light'] = 'none'

def test_free_text():
    read = read_attributes('There is an oval, dark brown lesion; grey skin, many hairs')
    assert read == {'shape': 'oval', 'colour': 'dark brown', 'second colour': 'none', 'skin': 'gray', 'hair': 'many', 'corners': 'none'}
    assert read_attributes('') == {} and read_attributes('No lesion', 'colonoscopy')['size'] == 'none'

# --- files -----------------------------------------------------------------------------------------------------------

def test_nothing_there(tmp_path):
    assert 'vap-diffusion describe' in message_of(FileNotFoundError, lambda: load_descriptions(tmp_path))
    assert 'vap-diffusion prepare' in message_of(FileNotFoundError, lambda: describe_table(tmp_path))

@pytest.mark.parametrize('tear', [b'{"file_name": "images/x', b'{"file_name": "images/x.png", "t_mix": "caf\xc3', b'{}', b'null'])
def test_a_torn_line(work, tear):
    whole = describe_table(work, progress=False)
    path = work/'descriptions.jsonl'; lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b''.join(lines[:7]) + tear)
    assert len(load_descriptions(work)) == 7, 'reading leaves the torn line out'
    assert describe_table(work, progress=False).equals(whole) and path.read_bytes() == b''.join(lines)

@pytest.mark.parametrize('damage', [b'{"file_name": "imag\n', b'null\n', b'{"file_name": "a"}\n', b'\x00\x00\x00\n'])
def test_a_damaged_line_in_the_middle(work, damage):
    describe_table(work, progress=False)
    path = work/'descriptions.jsonl'; lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b''.join(lines[:3]) + damage + b''.join(lines[4:])); before = path.read_bytes()
    for call in (lambda: load_descriptions(work), lambda: describe_table(work, progress=False)):
        assert 'line 4' in message_of(ValueError, call)
    assert path.read_bytes() == before

def test_the_last_line_of_an_image_counts(work):
    words = describe_table(work, progress=False)
    with open(work/'descriptions.jsonl', 'a') as f:
        f.write(json.dumps(words.iloc[2].to_dict() | dict(t_mix='corrected by hand')) + '\n')
    again = load_descriptions(work)
    assert len(again) == 18 and again.set_index('file_name').t_mix[words.file_name[2]] == 'corrected by hand'

class Another(MeasuringDescriber): name = 'another'

def test_lines_of_another_model(work):
    describe_table(work, progress=False); before = (work/'descriptions.jsonl').read_bytes()
    text = message(ValueError, lambda: describe_table(work, Another(), progress=False))
    assert 'measure-2' in text and 'another' in text and 'delete the file' in text
    assert (work/'descriptions.jsonl').read_bytes() == before

def test_lines_of_other_questions(work, monkeypatch):
    describe_table(work, progress=False)
    monkeypatch.setitem(PROMPTS, 'dermoscopy', replace(PROMPTS['dermoscopy'], version='vaps-9'))
    text = message(ValueError, lambda: describe_table(work, progress=False))
    assert 'vaps-1' in text and 'vaps-9' in text

def test_a_missing_image_keeps_what_was_done(work):
    table = prepare('phantoms', work.parent/'phantoms', work, n=18, progress=False)
    gone = work.parent/'phantoms'/table.file_name[5]; data = gone.read_bytes(); gone.unlink()
    assert gone.name in message_of(ValueError, lambda: describe_table(work, progress=False))
    assert len(load_descriptions(work)) == 5
    gone.write_bytes(data); assert len(describe_table(work, progress=False)) == 18

def test_each_line_is_on_the_disk_before_the_next_question(work):
    "What a power cut leaves: all answers but the last."
    path, seen = work/'descriptions.jsonl', []
    class Watching(MeasuringDescriber):
        def measure(self, *args): seen.append(path.read_bytes().count(b'\n')); return super().measure(*args)
    describe_table(work, Watching(), progress=False)
    assert seen == [i for i in range(18) for _ in range(2)]                  # Questions 1 and 3 of each image

def test_no_answer_is_noted(work):
    class Silent(MeasuringDescriber):
        name = 'silent'
        def chat(self, messages): return '  ' if len(messages) > 1 else super().chat(messages)
    with pytest.warns(UserWarning, match='18 images'): describe_table(work, Silent(), progress=False)

def test_a_server_that_dies_and_comes_back(work):
    with Answers(*['one']*20, 500) as server:
        name = server.url
        text = message(ServerError, lambda: describe_table(work, OpenAIMLLM('llava', name, max_retries=0), progress=False))
        done = len(load_descriptions(work)); assert 0 < done < 18 and 'goes on' in text
        server.script[:] = ['two']; server.seen.clear()
        words = describe_table(work, OpenAIMLLM('llava', name), progress=False)
        assert len(words) == 18 and (words.t_mix == 'one').sum() == done and (words.t_mix == 'two').sum() == 18 - done

def test_ctrl_c_and_the_same_command(tmp_path):
    "A real interrupt to a real process with its pool of workers; then the rest, in the same order as without it."
    write_phantoms(tmp_path/'p', 450, size=32, progress=False)
    prepare('phantoms', tmp_path/'p', tmp_path/'w', n=450, size=32, progress=False)
    code = (f'from vap_diffusion.vaps import describe_table\ntry: describe_table({str(tmp_path/"w")!r}, progress=False)\n'
            'except KeyboardInterrupt: raise SystemExit(130)')
    path = tmp_path/'w'/'descriptions.jsonl'
    process = subprocess.Popen([sys.executable, '-c', code], stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.time() + 120
    while time.time() < deadline and process.poll() is None and (not path.exists() or path.stat().st_size == 0):
        time.sleep(.01)
    os.killpg(process.pid, signal.SIGINT)                                    # as a terminal does: parent and workers
    stderr = process.communicate(timeout=60)[1]
    assert process.returncode == 130 and 'Traceback' not in stderr, stderr
    left = load_descriptions(tmp_path/'w'); assert 0 < len(left) < 450
    kept = path.read_bytes()
    words = describe_table(tmp_path/'w', progress=False)
    assert len(words) == 450 and path.read_bytes().startswith(kept[:kept.rfind(b'\n') + 1])
    assert (words.file_name.tolist()
            == prepare('phantoms', tmp_path/'p', tmp_path/'w', n=450, size=32, progress=False).file_name.tolist())
    with pytest.raises(ProcessLookupError): os.killpg(process.pid, 0)        # no worker was left behind

def test_ctrl_c_does_not_wait_for_a_slow_server(work):
    with Answers('one', wait=20) as server:
        process = subprocess.Popen([sys.executable, '-m', 'vap_diffusion.cli', 'describe', str(work),
                                    '--mllm', f'openai:llava@{server.url}', '--steps', '1', '--yes'],
                                   stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        deadline = time.time() + 240
        while time.time() < deadline and process.poll() is None and len(server.seen) < 2: time.sleep(.05)
        assert len(server.seen) >= 2, process.poll()
        start = time.time(); process.send_signal(signal.SIGINT)
        stderr = process.communicate(timeout=60)[1]
    assert process.returncode == 130 and 'same command' in stderr and 'Traceback' not in stderr, stderr
    assert time.time() - start < 10, 'questions under way were waited for'

def test_workers_and_one_process_say_the_same(tmp_path):
    write_phantoms(tmp_path/'p', 210, size=32, progress=False)
    prepare('phantoms', tmp_path/'p', tmp_path/'w', n=210, size=32, progress=False)
    words = describe_table(tmp_path/'w', progress=False)                     # 200 or more: a pool
    prompters = {m: VisualAttributePrompter(MeasuringDescriber(), m) for m in ATTRIBUTES}
    from vap_diffusion.vaps import describe_files
    table = prepare('phantoms', tmp_path/'p', tmp_path/'w', n=210, size=32, progress=False)
    for row, said in list(zip(table.itertuples(), words.itertuples()))[::15]:
        assert describe_files(prompters, [tmp_path/'p'/row.file_name], row.modality)[0]['t_mix'] == said.t_mix

def test_lines_become_sentences_and_thinking_aloud_is_left_out():
    from vap_diffusion.vaps import one_line, without_thinking
    assert (one_line('**Findings:**\n- No device\n- Large heart.\n\n2) Clear lungs,\n   slim\nbuild')
            == 'Findings: No device. Large heart. Clear lungs, slim build')
    assert one_line('A round lesion with a\nsoft border') == 'A round lesion with a soft border' and one_line(' \n ') == ''
    assert (without_thinking('<think>The user wants\n</think>\n\nA round lesion.') == 'A round lesion.'
            and without_thinking('<think>for ever') == '' and without_thinking('a < b') == 'a < b')
    class Reasons: # as a server leaves it in the content
        name = 'reasons'
        def chat(self, messages, **how):
            return ('<think>The lesion could be anything, let me look.</think>\n'
                    '- A round brown lesion\n- Soft border')
    assert (VisualAttributePrompter(Reasons(), max_words=20).describe_many([make_phantom('nevus', 1).image])[0]['t_mix']
            == 'A round brown lesion. Soft border')

def test_workers_keep_to_the_number_of_words(tmp_path):
    write_phantoms(tmp_path/'p', 210, size=32, progress=False)
    prepare('phantoms', tmp_path/'p', tmp_path/'w', n=210, size=32, progress=False)
    with pytest.warns(UserWarning, match='were cut'): words = describe_table(tmp_path/'w', max_words=10, progress=False)
    assert words.t_mix.str.split().str.len().max() <= 10

def test_a_merge_does_not_overwrite_another_models_words(work):
    from vap_diffusion.vaps import merge_descriptions, write_descriptions
    class Model:
        def __init__(self, name): self.name = name
        def chat(self, messages, **how): return f'A round brown lesion, says {self.name}.'
    write_descriptions(work, Model('first'), progress=False)
    for i in (1, 2): write_descriptions(work, Model('second'), progress=False, shard=(i, 2))
    before = (work/'descriptions.jsonl').read_bytes()
    assert 'holds descriptions by first' in message(ValueError, lambda: merge_descriptions(work))
    assert (work/'descriptions.jsonl').read_bytes() == before
