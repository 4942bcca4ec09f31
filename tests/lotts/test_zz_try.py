import sys; sys.path.insert(0,'/work/main/tests/lotts')
import numpy as np, torch, pytest
from pathlib import Path
def test_e2e(tiny_pipe, tmp_path, capsys):
    from lotts import LoTTS, repair
    judge=lambda images,prompts:[float(i.mean()) for i in images]
    out=LoTTS(tiny_pipe,judge)("a red cat sits",num_candidates=2,num_refinements=2,num_inference_steps=6,generator=torch.Generator().manual_seed(3))
    f=out.save(tmp_path/"o"); print(sorted(p.name for p in f.rglob("*")))
    print((f/"manifest.json").read_text())
    from lotts.replays import replay
    r=replay(f,pipe=tiny_pipe,verifier=judge); print(r.exact,r.changes,r.differences)
    for mask in (None, np.eye(16)>0):
        out=repair(tiny_pipe,out.image,"a red cat sits",mask,verifier=judge,num_inference_steps=6,generator=torch.Generator().manual_seed(5))
        f=out.save(tmp_path/"r"); print(f, sorted(p.name for p in f.rglob("*")))
        r=replay(f,pipe=tiny_pipe,verifier=judge); print(r.exact,r.changes,r.differences, r.output.improvement)
        out.report().save(f"/tmp/r4.png")
    tiny_pipe.save_pretrained(tmp_path/"pipe")
    capsys.readouterr()
    from lotts.models import load_pipeline
    p=load_pipeline(str(tmp_path/"pipe"))
    c=capsys.readouterr(); print("OUT",c.out,"ERR",c.err, p.dtype)
