"""Every live step is followed by IDLE steps without tokens; after 72 live steps the loads change.
`python3 serve-idle-steps.py URL IDLE`: compare IDLE 0 with 1 and 3."""
import json, math, random, sys, time, urllib.request

url, idle = sys.argv[1].rstrip("/"), int(sys.argv[2])
name, draw = f"idle{idle}", random.Random(1)


def call(method, path, body=None):
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url + path, data=data, method=method, headers={"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as answer:
        return json.loads(answer.read())


call("PUT", f"/v1/models/{name}", {"ranks": 4, "redundant": 4})
heat = [[math.exp(draw.gauss(0, 1)) for _ in range(16)] for _ in range(2)]
step = 0


def post(weights, count):
    global step
    steps = []
    for _ in range(count):
        counts = []
        for row in weights:
            drawn = draw.choices(range(16), row, k=400)
            counts.append([drawn.count(e) for e in range(16)])
        steps.append({"step": step, "counts": counts})
        step += 1
        for _ in range(idle):
            steps.append({"step": step, "counts": [[0] * 16] * 2})
            step += 1
    call("POST", f"/v1/models/{name}/loads", {"steps": steps})
    while True:
        time.sleep(0.3)
        phase = call("GET", f"/v1/models/{name}")["phases"][0]
        if phase["lag"] == 0 and not phase["planning"]:
            return


for _ in range(9):
    post(heat, 8)
for _ in range(8):
    post([row[::-1] for row in heat], 8)
history = call("GET", f"/v1/models/{name}/history")
for d in history["decisions"]:
    print(d["accepted"], d["trigger"], d["outcome"], {k: round(v, 3) for k, v in d["imbalance"].items()}, d["reason"][:90])
print("points below 1, which no imbalance can be:", sum(p["mean"] < 1 for p in history["points"]), "of", len(history["points"]))
live = [p["mean"] for p in history["points"] if p["mean"] > 0]
print("mean imbalance of live steps after the change:", round(sum(live[72:]) / len(live[72:]), 3))
