import sys

import evenkeel

dump, folder = sys.argv[1:]
trace = evenkeel.read_trace(dump)  # expert_distribution_recorder_*.pt, as SGLang wrote it
for stack, file in [("sglang", "init.json"), ("trtllm", "balancer.yaml"), ("vllm-ascend", "map.json")]:
    split = "sglang-static" if stack == "sglang" else stack  # the stack's rule with an all-to-all
    plan = evenkeel.plan(trace, ranks=8, redundant=8, split=split)
    print(plan, "busiest rank over average: {:.3f}, EPLB {:.3f}".format(*plan.figures[split]))
    with open(f"{folder}/{file}", "w") as out:
        out.write(plan.export(stack))
