"""Push the course pipeline to a hub stand-in, load it back, and what a user reads when the hub says no.

One process, for it reads its settings when it starts."""
import json, os, re, subprocess, sys
from pathlib import Path
import pytest
from hub import Hub, hub_env

def visit(root):
    "What happens with a hub, as JSON on the last line; runs in a process whose environment is already the stand-in's."
    hub = Hub()
    os.environ['HF_ENDPOINT'] = hub.url             # before huggingface_hub is imported, which reads it then
    import contextlib, io, shutil, time
    import torch
    from huggingface_hub import ModelCard
    from vap_diffusion import cli, pipeline
    root, found = Path(root), {}
    def verb(*args):
        "A verb in this process: its exit code and what it wrote."
        out, err, old = io.StringIO(), io.StringIO(), sys.argv
        sys.argv = ['vap-diffusion', *map(str, args)]
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try: cli.main()
            except SystemExit as e: code = e.code
        sys.argv = old
        return [code, out.getvalue(), [l for l in err.getvalue().splitlines() if l.startswith('error: ')]]
    def paint(pipe):
        return pipe(['nevus', 'melanoma'], None, 2, generator=torch.Generator().manual_seed(3), output_type='np').images
    with hub:
        pipe = pipeline.load_pipeline('course')
        judged = root/'judged'; judged.mkdir()
        (judged/'sample.json').write_text(json.dumps(dict(model='course', prompts='bank', guidance_scale=2., num_inference_steps=20)))
        (judged/'evaluation-test.json').write_text(json.dumps(dict(fid=43.21, fid_floor=1.234, n=77, features='judge', split='test')))
        found['push'] = verb('push', 'course', 'me/course', '--private', '--evaluation', judged)
        found['files'], found['card'] = sorted(hub.files('me/course')), hub.files('me/course')['README.md'].decode()
        found['index'], found['private'], found['large'] = (hub.files('me/course')['model_index.json'].decode(),
                                                            hub.private['me/course'], len(hub.large))
        head = ModelCard(found['card']).data
        found['head'] = [head.license, head.library_name, head.pipeline_tag]
        hub.asked.clear()
        again = pipeline.load_pipeline('me/course')
        found['fetched'] = any('/resolve/' in a and 'uvit' in a for a in hub.asked)
        found['same'] = bool((paint(again) == paint(pipe)).all())
        found['bank'], found['kept'] = again.prompt_bank == pipe.prompt_bank, again.card == found['card']
        found['url'] = again.push_to_hub('me/other', commit_message='once more')
        again.prompt_bank = None; again.save_pretrained(root/'mine', push_to_hub=True, repo_id='me/bare')
        found['bare'] = sorted(hub.files('me/bare'))
        found['no bank'] = pipeline.VAPDiffusionPipeline.from_pretrained('me/bare').prompt_bank is None
        (judged/'sample.json').write_text(json.dumps(dict(model='another', prompts='bank', guidance_scale=2., num_inference_steps=20)))
        found['another model'] = verb('push', 'course', 'me/course', '--evaluation', judged)
        found['forbidden'] = verb('push', 'course', 'forbidden/course')
        found['no repo'] = verb('sample', 'me/nothing', '--out', root/'s')
        os.environ['HF_TOKEN'] = 'hf_bad'; found['wrong token'] = verb('push', 'course', 'me/course')
        del os.environ['HF_TOKEN']; found['no token'] = verb('push', 'course', 'me/course')
        os.environ['HF_TOKEN'] = 'hf_good'
    start = time.time(); found['dead'] = verb('push', 'course', 'me/course'); found['dead seconds'] = time.time() - start
    found['cached'] = bool((paint(pipeline.load_pipeline('me/course')) == paint(pipe)).all())
    shutil.rmtree(root/'hf'); found['dead, load'] = verb('sample', 'me/course', '--out', root/'s3')
    print(json.dumps(found))

@pytest.fixture(scope='module')
def found(tmp_path_factory):
    root = tmp_path_factory.mktemp('hub')
    env = hub_env('', root/'hf', 'hf_good') | dict(
        PYTHONPATH=os.pathsep.join([str(Path(__file__).parent), *filter(None, [os.environ.get('PYTHONPATH')])]))
    done = subprocess.run([sys.executable, '-c', f'import test_hub; test_hub.visit({str(root)!r})'],
                          env=env, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])

def line(answer):
    "The one error line of a verb that must fail."
    code, out, errors = answer
    assert code == 1 and len(errors) == 1, answer
    return errors[0]

def test_a_push_brings_everything_and_no_path_of_this_machine(found):
    assert found['push'][0] == 0 and '/me/course' in found['push'][1] and 'apache-2.0' in found['push'][1], found['push']
    assert {'README.md', 'model_index.json', 'prompt_bank.json', 'uvit/diffusion_pytorch_model.safetensors',
            'vae/diffusion_pytorch_model.safetensors', 'text_encoder/tokenizer.json'} <= set(found['files'])
    assert found['private'] and found['large'] == 3 and '_name_or_path' not in found['index']
    assert found['url'].endswith('/me/other')

def test_the_card_on_the_hub_has_notice_licence_data_budget_and_floors(found):
    from vap_diffusion.pipeline import SYNTHETIC
    shipped = (Path(__file__).parents[1]/'assets'/'course'/'README.md').read_text()
    assert found['head'] == ['apache-2.0', 'vap-diffusion', 'text-to-image']
    assert (SYNTHETIC in found['card'] and 'phantoms' in found['card']
            and re.search(r'- \*\*steps\*\*: \d+', shipped)[0] in found['card']
            and '- **FID (floor)**: 43.21 (1.234)' in found['card'])
    assert "load_pipeline('me/course')" in found['card'] and found['card'].count('## Metrics') == 1 and '15.3' not in found['card']

def test_what_comes_back_paints_the_same_images(found):
    assert found['fetched'] and found['same'] and found['bank'] and found['kept'] and found['cached']

def test_a_pipeline_without_a_bank_travels_too(found):
    assert found['no bank'] and 'prompt_bank.json' not in found['bare'] and 'README.md' in found['bare']

def test_what_a_user_reads_when_the_hub_says_no(found):
    assert 'does not accept the token (401)' in line(found['wrong token']) and 'hf auth login' in line(found['wrong token'])
    assert 'needs a token' in line(found['no token']) and 'HF_TOKEN' in line(found['no token'])
    assert '403' in line(found['forbidden']) and 'forbidden/course' in line(found['forbidden'])
    assert 'me/nothing cannot be loaded' in line(found['no repo'])
    assert "painted by 'another'" in line(found['another model'])

def test_a_dead_hub_is_one_line_and_soon(found):
    assert 'cannot be reached' in line(found['dead']) and found['dead seconds'] < 60
    assert 'me/course cannot be loaded' in line(found['dead, load']) and 'network' in line(found['dead, load'])
