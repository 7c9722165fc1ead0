"""`sample` at scale: `python tests/many_samples.py` writes results/many_samples.json.

Resident size at its highest while 1,000 and 50,000 images are painted to disk, each in a process of its own; then a run that is killed
(`kill -9`) in its middle and started again, whose files must be those of an undisturbed one, byte by byte. The pipeline is a tiny one
with random weights: what matters here is the way to the disk."""
import argparse, hashlib, json, random, signal, subprocess, sys, tempfile, time
from pathlib import Path
from bench_metrics import resident

def tiny_pipeline():
    "Random weights; the course text encoder and a bank of two descriptions a class."
    import torch
    from diffusers import AutoencoderKL, DPMSolverMultistepScheduler
    from vap_diffusion.pipeline import VAPDiffusionPipeline
    from vap_diffusion.prompt_bank import PromptBank
    from vap_diffusion.text import load_text_encoder
    from vap_diffusion.uvit import UViT
    torch.manual_seed(0)
    vae = AutoencoderKL(block_out_channels=(8, 8, 8, 8), down_block_types=('DownEncoderBlock2D',)*4,
                        up_block_types=('UpDecoderBlock2D',)*4, norm_num_groups=4, sample_size=16).eval()
    vae.register_to_config(latents_mean=[0.]*4, latents_std=[1.]*4)
    pipe = VAPDiffusionPipeline(vae, UViT(sample_size=2, embed_dim=32, depth=2, num_heads=2, num_classes=2).eval(),
                                load_text_encoder('course'), DPMSolverMultistepScheduler(), ['nevus', 'melanoma'],
                                name='tiny')
    pipe.prompt_bank = PromptBank({'nevus': ['round brown lesion', 'small pink lesion'],
                                   'melanoma': ['large black lesion', 'irregular dark lesion']})
    pipe.set_progress_bar_config(disable=True)
    return pipe

def paint(out, n):
    "Images and the peak of memory."
    from vap_diffusion.pipeline import sample
    pipe = tiny_pipeline(); sample(pipe, f'{out}-warm', 128, num_inference_steps=1, guidance_scale=1, progress=False)
    before = resident('VmRSS'); Path('/proc/self/clear_refs').write_text('5')                    # the peak starts here
    start = time.time(); sample(pipe, out, n, num_inference_steps=1, guidance_scale=1, progress=False)
    return dict(images=n, before_mb=round(before/2**20), peak_mb=round(resident('VmHWM')/2**20),
                images_per_second=round(n/(time.time() - start)))

def digest(folder):
    return hashlib.sha256(b''.join(p.name.encode() + p.read_bytes()
                                   for p in sorted(folder.glob('images/*.png')))).hexdigest()

def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('--many', type=int, default=50_000)
    ap.add_argument('--out', type=Path, default=Path('results/many_samples.json'))
    ap.add_argument('--paint', nargs=2, metavar=('FOLDER', 'N'), help=argparse.SUPPRESS)
    a = ap.parse_args()
    if a.paint: return print(json.dumps(paint(a.paint[0], int(a.paint[1]))))
    from vap_diffusion.quickstart import machine
    from vap_diffusion.datasets import write_json
    start, memory = time.time(), []
    with tempfile.TemporaryDirectory() as root:
        root = Path(root)
        job = lambda name, n: [sys.executable, '-W', 'ignore', __file__, '--paint', str(root/name), str(n)]
        for name, n in ('few', 1000), ('many', a.many):
            memory.append(json.loads(subprocess.run(job(name, n), check=True, capture_output=True, text=True).stdout))
            print(memory[-1], flush=True)
        kills, rng = 5, random.Random(0)
        for _ in range(kills):
            had = len(list(root.glob('killed/images/*.png')))
            process = subprocess.Popen(job('killed', 1000), stdout=subprocess.DEVNULL)
            while len(list(root.glob('killed/images/*.png'))) < had + rng.randint(20, 180): time.sleep(.002)
            process.send_signal(signal.SIGKILL); process.wait()
        subprocess.run(job('killed', 1000), check=True, capture_output=True)
        same = digest(root/'few') == digest(root/'killed')
    write_json(a.out, dict(memory=memory, kills=kills, same_images=same, command='python tests/many_samples.py',
                           seconds=round(time.time() - start), **machine()))
    print(f'{kills} kills: {"the same images" if same else "OTHER IMAGES"}')
    if not same: sys.exit(1)

if __name__ == '__main__': main()
