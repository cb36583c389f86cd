"""Tests of the page of `evenkeel serve` in a real Chromium: content, actions, texts for screen readers.

`make page` runs them. EVENKEEL names the binary (default target/debug/evenkeel), CHROMIUM the browser,
and AXE the file axe.min.js. Without AXE the accessibility checks are skipped. PICTURES names a folder
for pictures of all states.
"""

import os
import pathlib
import subprocess
import sys
import tempfile
import unittest

from browser import Browser, find
from service import RANKS, Service

TOKEN = "a-token-for-the-page-0123456789"
AXE = os.environ.get("AXE")
SKIPPED = pathlib.Path(__file__).resolve().parents[4] / ".ci/skipped"
PICTURES = os.environ.get("PICTURES")
READY = "!document.getElementById('page').hidden && document.getElementById('headline').innerText"
LIVE = "rgb(23, 129, 137)"
PLAN = "document.getElementById('plan').innerText"


class PageTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.browser = Browser(find())

    @classmethod
    def tearDownClass(cls):
        cls.browser.close()

    def service(self, **options):
        service = Service(**options)
        self.addCleanup(service.close)
        return service

    def fed(self, steps=8, **options):
        """Returns a service with a model that has its first plan."""
        service = self.service(**options)
        service.make()
        service.post(0, steps)
        service.ask("GET", "/v1/models/model/plan?wait=60")
        return service

    def open(self, service, path="/", **options):
        page = self.browser.page(service.url + path, **options)
        self.addCleanup(page.close)
        return page

    def picture(self, page, name):
        if PICTURES:
            os.makedirs(PICTURES, exist_ok=True)
            page.picture(os.path.join(PICTURES, f"{name}.png"), whole=True)

    def accessible(self, page, name):
        """Asserts that axe finds no violation of WCAG AA."""
        if not AXE:
            return
        with open(AXE) as file:
            page.eval(file.read() + "; 1")
        tags = "{runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'wcag22aa', 'best-practice']}"
        found = page.eval(f"axe.run(document, {tags}).then((all) => all.violations.map((v) => "
                          "[v.id, v.impact, v.help, v.nodes.map((n) => n.html + ' ' + n.failureSummary)]))", seconds=60)
        self.assertEqual(found, [], f"{name}: {found}")

    def test_without_a_model_it_says_how_to_feed_one(self):
        service = self.service()
        page = self.open(service)
        page.wait("!document.getElementById('empty').hidden")
        self.assertIn(f"evenkeel trace replay TRACE --to {service.url} --speed 10", page.text("#empty"))
        self.accessible(page, "empty")
        self.picture(page, "empty")
        service.make()
        page.wait("document.getElementById('empty-title').innerText.includes('No loads of model')")
        service.post(0, 8)
        page.wait(READY)
        self.assertEqual(page.complaints(), [])

    def test_time_comes_first_where_it_is_known(self):
        service = self.service()
        service.make(model="qwen3-30b-a3b", gpu="h100")
        service.post(0, 8)
        service.ask("GET", "/v1/models/model/plan?wait=60")
        page = self.open(service)
        page.wait(f"{READY} && {PLAN} === 'no. 1'")
        self.assertRegex(page.text("#headline"), r"^(Not worth|Worth) it: the experts of these layers take \d+\.\d+ ms")
        self.assertRegex(page.text("#verdict"), r"^The busiest rank does 1\.\d+ times")
        self.accessible(page, "verdict")
        self.picture(page, "verdict")

    def test_it_shows_how_things_stand(self):
        service = self.fed(steps=12)
        for scheme in ["light", "dark"]:
            page = self.open(service, scheme=scheme)
            page.wait(f"{READY} && {PLAN} === 'no. 1'")
            self.assertRegex(page.text("#headline"), r"^The busiest rank does 1\.\d+ times the average work instead of \d\.\d+ times\.$")
            self.assertRegex(page.text("#verdict"), r"^Worth it\? Times are not known: state model and gpu")
            self.assertIn("layers down, 8 ranks across", page.eval("document.getElementById('heat-canvas').getAttribute('aria-label')"))
            colours = page.eval("""(() => {
                const canvas = document.getElementById("heat-canvas");
                const data = canvas.getContext("2d").getImageData(40, 8, canvas.width - 110, 120).data;
                return new Set(Array.from({length: data.length / 4}, (_, at) => data.slice(4 * at, 4 * at + 3).join())).size;
            })()""")
            self.assertGreater(colours, 1, "the heat map is drawn")
            self.assertEqual(page.eval("document.querySelectorAll('#ranks button').length"), RANKS)
            self.assertIn("re-planned plan 1", page.text("#log").replace("\n", " "))
            page.wait("document.querySelectorAll('#hot-rows td').length > 0")
            page.eval("document.getElementById('layers').open = true")
            page.wait("document.querySelectorAll('#layers-rows tr').length === 6")
            page.wait("document.getElementById('link').dataset.state === 'live'")
            self.accessible(page, scheme)
            self.picture(page, scheme)
            self.assertEqual(page.complaints(), [])

    def test_it_follows_what_happens_and_leaves_the_focus_alone(self):
        service = self.fed()
        page = self.open(service)
        page.wait(f"{READY} && document.getElementById('link').dataset.state === 'live'")
        page.eval("document.querySelectorAll('#ranks button')[3].focus(); window.scrollTo(0, 300); window.kept = document.activeElement")
        at = page.eval("window.scrollY")
        # One decision may soon follow another.
        page.eval("window.all = []; new MutationObserver(() => window.all.push(document.getElementById('announcement').innerText))"
                  ".observe(document.getElementById('announcement'), {childList: true, characterData: true, subtree: true}); 0")
        service.post(8, 10)
        page.wait("document.getElementById('time-reading').innerText.includes('step 17')")
        # Drifting loads cause a re-planning.
        service.post(18, 30, hot=11)
        page.wait(f"/^no. [2-9]/.test({PLAN})", 60)
        self.assertTrue(page.eval("document.activeElement === window.kept"), "the focus is where it was")
        self.assertEqual(page.eval("window.scrollY"), at, "nothing jumps")
        page.wait(r"window.all.some((announcement) => /^Decision \d+, re-planned: imbalance \d\.\d+ to \d\.\d+, \d+ moves?\./.test(announcement))")
        self.assertGreaterEqual(page.eval("document.querySelectorAll('#time .flag.applied').length"), 2)
        self.assertEqual(page.complaints(), [])

    def test_planning_again_is_shown_before_it_is_done(self):
        service = self.fed(config="[decide]\nfirst_after = 8\nevery = 100000\nmin_every = 100000\nwindow = 32\nmove_cost = 0.5\n")
        service.post(8, 30, hot=11)
        page = self.open(service)
        page.wait(f"{READY} && {PLAN} === 'no. 1'")
        page.wait("document.getElementById('plan-words').innerText.includes('of 37')")
        page.click("#what-if")
        page.wait("document.getElementById('next-say').innerText.includes('would lower')", 60)
        self.assertEqual(page.text("#next-title"), "Changes of the next plan")
        self.assertEqual(len(service.ask("GET", "/v1/models/model/history")["decisions"]), 1, "nothing was decided")
        self.assertGreater(page.eval("document.querySelectorAll('#moves-rows tr').length"), 0)
        page.click('input[value="next"] + span')
        page.wait("!document.getElementById('wipe').hidden")
        self.accessible(page, "before and after")
        self.picture(page, "before-and-after")
        page.click("#replan")
        page.wait("document.getElementById('dialog').open", 60)
        self.accessible(page, "dialog")
        self.picture(page, "dialog")
        page.key("Escape")
        page.wait("!document.getElementById('dialog').open && document.activeElement.id === 'replan'")
        self.assertEqual(len(service.ask("GET", "/v1/models/model/history")["decisions"]), 1, "nothing was decided")
        page.click("#replan")
        page.wait("document.getElementById('dialog').open", 60)
        page.click("#dialog-yes")
        page.wait(f"{PLAN} === 'no. 2'", 60)
        decision = service.ask("GET", "/v1/models/model/history")["decisions"][-1]
        self.assertEqual((decision["trigger"], decision["outcome"], decision["plan"]), ("manual", "applied", 2))
        self.assertIn("a client requested it", page.text("#log li"))
        self.assertEqual(page.complaints(), [])

    def test_a_rank_goes_and_comes_back(self):
        service = self.fed()
        page = self.open(service)
        page.wait(READY)
        page.click("#ranks li:nth-child(3) button")
        page.wait("document.getElementById('dialog').open")
        self.assertEqual(page.text("#dialog-title"), "Plan without rank 2?")
        page.click("#dialog-yes")
        page.wait("document.querySelector('#ranks li:nth-child(3) button').innerText.includes('down')", 60)
        self.assertIn("on 7 ranks of 8 (down: 2)", page.text("#setting"))
        self.accessible(page, "a rank is down")
        self.picture(page, "rank-down")
        page.click("#ranks li:nth-child(3) button")
        page.wait("document.getElementById('dialog').open")
        page.click("#dialog-yes")
        page.wait("!document.querySelector('#ranks li:nth-child(3) button').innerText.includes('down')", 60)
        self.assertEqual([d["trigger"] for d in service.ask("GET", "/v1/models/model/history")["decisions"]], ["first", "rank_down", "rank_up"])
        self.assertEqual(page.complaints(), [])

    def test_refusals_are_shown_with_their_advice(self):
        service = self.fed()
        page = self.open(service)
        page.wait(READY)
        page.click("#ranks li:nth-child(3) button")
        page.wait("document.getElementById('dialog').open")
        service.ask("POST", "/v1/models/model/ranks/2/down")
        page.click("#dialog-yes")
        page.wait("!document.getElementById('error').hidden")
        self.assertIn("Rank 2 is already down.", page.text("#error"))
        self.assertIn("Expected:", page.text("#error"))
        self.accessible(page, "error")
        self.picture(page, "error")
        page.click("#error-close")
        page.wait("document.getElementById('error').hidden")

    def test_a_token_is_asked_for_and_kept_in_the_tab(self):
        service = self.fed(token=TOKEN)
        page = self.open(service)
        page.wait("!document.getElementById('token').hidden")
        self.assertEqual(page.eval("document.getElementById('page').hidden"), True)
        self.accessible(page, "token")
        self.picture(page, "token")
        for text, then in [("not-the-token-at-all", "document.getElementById('token-why').innerText.includes('does not know this token')"), (TOKEN, READY)]:
            page.click("#token-text")
            page.type(text)
            page.key("Enter")
            page.wait(then)
        page.wait("document.getElementById('link').dataset.state === 'live'")
        self.assertEqual(page.eval("[sessionStorage.length, localStorage.length, document.cookie]"), [1, 0, ""])
        service.post(8, 4)
        page.wait("document.getElementById('time-reading').innerText.includes('step 11')")
        page.send("Page.reload")
        page.wait(READY)
        page.click("#forget")
        page.wait("!document.getElementById('token').hidden && document.getElementById('page').hidden")
        self.assertEqual(page.eval("sessionStorage.length"), 0)

    def test_it_says_when_it_is_cut_off_and_goes_on(self):
        service = self.fed()
        page = self.open(service)
        page.wait(f"{READY} && document.getElementById('link').dataset.state === 'live'")
        service.stop()
        page.wait("document.getElementById('link').dataset.state === 'reconnecting'", 30)
        page.wait("document.getElementById('link').dataset.state === 'stale'", 40)
        self.assertTrue(page.text("#headline"), "what was known stays")
        self.accessible(page, "stale")
        self.picture(page, "stale")
        service.start()
        # The service runs again, but receives no loads yet.
        page.wait("document.getElementById('link').dataset.state === 'stopped'", 40)
        service.post(8, 4)
        page.wait("document.getElementById('time-reading').innerText.includes('step 11')")
        page.wait("document.getElementById('link').dataset.state === 'live'")

    def test_without_a_stream_it_asks(self):
        service = self.fed()
        page = self.browser.page()
        self.addCleanup(page.close)
        page.send("Page.addScriptToEvaluateOnNewDocument", {"source": """
            const real = window.fetch;
            window.fetch = (...given) => /events$/.test(given[0]) ? Promise.reject(new TypeError("no")) : real(...given);"""})
        page.send("Page.navigate", {"url": service.url})
        page.wait(f"{READY} && document.getElementById('link').dataset.state === 'polling'")
        service.post(8, 4)
        page.wait("document.getElementById('time-reading').innerText.includes('step 11')")
        self.assertEqual(page.complaints(), [])

    def test_phases_are_chosen(self):
        service = self.service()
        service.make()
        service.post(0, 8, phase="prefill")
        service.post(0, 12, phase="decode", hot=5)
        page = self.open(service, "/#model=model&phase=decode")
        page.wait(f"{READY} && document.getElementById('phase').value === 'decode'")
        page.wait("document.getElementById('plan-words').innerText.includes('of 11')")
        self.accessible(page, "phases")
        page.eval("const select = document.getElementById('phase'); select.value = 'prefill'; select.dispatchEvent(new Event('change')); 1")
        page.wait("document.getElementById('plan-words').innerText.includes('of 7')")
        self.assertEqual(page.eval("location.hash"), "#model=model&phase=prefill")
        self.assertEqual(page.complaints(), [])

    def test_it_fits_a_phone(self):
        service = self.fed(steps=12)
        for scheme in ["light", "dark"]:
            page = self.open(service, width=360, height=760, mobile=True, scale=2, scheme=scheme)
            page.wait(f"{READY} && {PLAN} === 'no. 1'")
            page.wait("document.getElementById('link').dataset.state === 'live'")
            self.assertEqual(page.eval("document.documentElement.scrollWidth"), 360, "nothing sticks out")
            self.accessible(page, f"phone {scheme}")
            self.picture(page, f"phone-{scheme}")
            page.click("#replan")
            page.wait("document.getElementById('dialog').open", 60)
            self.assertEqual(page.eval("document.documentElement.scrollWidth"), 360)

    def test_everything_is_reached_and_read_by_keyboard(self):
        service = self.fed(steps=12)
        page = self.open(service, motion="reduce")
        page.wait(READY)
        reached = []
        for _ in range(60):
            page.key("Tab")
            name = page.eval("(document.activeElement.id || document.activeElement.name || document.activeElement.className || document.activeElement.tagName)")
            reached.append(name)
            if name == "heat-grid":
                page.key("ArrowDown")
                page.key("ArrowRight")
                said = page.eval("document.getElementById(document.activeElement.getAttribute('aria-activedescendant')).textContent")
                self.assertRegex(said, r"^layer 1, rank 1: \d\.\d{3}×$")
                self.assertFalse(page.eval("document.getElementById('heat-tip').hidden"))
                page.key("Escape")
                self.assertTrue(page.eval("document.getElementById('heat-tip').hidden"))
            if name == "time-at":
                page.key("ArrowLeft")
                said = page.eval("document.activeElement.getAttribute('aria-valuetext')")
                self.assertRegex(said, r"^step 10, the 11th: mean \d\.\d+, worst layer")
            if name == "BODY":
                break
        for name in ["skip", "model", "heat", "heat-grid", "chip", "time", "time-at", "what-if", "replan"]:
            self.assertIn(name, reached)

    def test_names_from_outside_stay_text(self):
        service = self.fed()
        page = self.browser.page()
        self.addCleanup(page.close)
        hostile = "<img src=x onerror=window.taken=1>\\u202e"
        page.send("Page.addScriptToEvaluateOnNewDocument", {"source": f"""
            const real = window.fetch;
            window.fetch = async (...given) => {{
                const reply = await real(...given);
                if (!/history|view|models$/.test(given[0])) return reply;
                const text = (await reply.text()).replaceAll(/"reason":"/g, '$&{hostile}').replaceAll(/"(name|model)":"model"/g, '"$1":"{hostile}"');
                return new Response(text, {{status: reply.status, headers: reply.headers}});
            }};"""})
        page.send("Page.navigate", {"url": service.url})
        page.wait("document.getElementById('model').options.length > 0")
        page.wait("document.getElementById('model').innerText.includes('<img')")
        self.assertEqual(page.eval("document.querySelectorAll('img').length + (window.taken ?? 0)"), 0)
        self.assertFalse(page.eval("document.body.innerText.includes('\\u202e')"))

    def test_pages_of_others_have_nothing_done(self):
        service, other = self.fed(), self.service()
        page = self.open(other)
        page.wait("!document.getElementById('empty').hidden")
        page.send("Page.setBypassCSP", {"enabled": True})
        page.send("Page.reload")
        page.wait("!document.getElementById('empty').hidden")
        page.eval(f"fetch('{service.url}/v1/models/model/ranks/2/down', {{method: 'POST', mode: 'no-cors'}}).then(() => 1)")
        self.assertEqual(len(service.ask("GET", "/v1/models/model/history")["decisions"]), 1)

    def test_a_feed_that_stops_is_shown_as_stopped(self):
        service = self.fed()
        page = self.open(service)
        page.wait(f"{READY} && document.getElementById('link').dataset.state === 'live'")
        page.wait("document.getElementById('link').dataset.state === 'stopped'", 30)
        self.assertRegex(page.text("#link-words"), r"^no loads since \d\d:\d\d:\d\d$")
        self.assertIn("No loads since", page.text("#plan-words"))
        self.assertNotEqual(page.eval("getComputedStyle(document.querySelector('#link .lamp')).backgroundColor"), LIVE)
        self.accessible(page, "stopped")
        self.picture(page, "stopped")
        # A page that is opened now shows this state at once.
        later = self.open(service)
        later.wait("document.getElementById('link').dataset.state === 'stopped'")
        service.post(8, 4)
        for one in [page, later]:
            one.wait("document.getElementById('link').dataset.state === 'live'")
            one.wait("!document.getElementById('plan-words').innerText.includes('No loads since')")
            self.assertEqual(one.eval("getComputedStyle(document.querySelector('#link .lamp')).backgroundColor"), LIVE)
        self.assertEqual(page.complaints(), [])

    def test_large_step_numbers_are_shown_digit_by_digit(self):
        first = 1_795_888_218_845_878_955
        service = self.service()
        service.make()
        service.post(first, 8)
        service.ask("GET", "/v1/models/model/plan?wait=60")
        page = self.open(service)
        page.wait(f"{READY} && document.getElementById('link').dataset.state === 'live'")
        page.wait("document.getElementById('plan-words').innerText.includes('Since step 1,795,888,218,845,878,962 of 1,795,888,218,845,878,962.')")
        page.wait("document.getElementById('time-reading').innerText.includes('step 1795888218845878962')")
        self.assertIn("after step 1,795,888,218,845,878,962", page.text("#log").replace("\n", " "))
        # Numbers in events are as exact as fetched ones.
        service.post(first + 8, 1)
        page.wait("document.getElementById('time-reading').innerText.includes('step 1795888218845878963')")
        parsed = page.eval("""import("/page/api.js").then(({parse}) => JSON.stringify(parse(
            '{"a": 9007199254740991, "b": 9007199254740993, "c": "x: 9007199254740993, \\\\"1", "d": [-9007199254740993, 1.5e300, 0.125]}')))""")
        self.assertEqual(parsed, '{"a":9007199254740991,"b":"9007199254740993","c":"x: 9007199254740993, \\"1",'
                         '"d":["-9007199254740993",1.5e+300,0.125]}')
        self.accessible(page, "large steps")
        self.picture(page, "large-steps")
        self.assertEqual(page.complaints(), [])

    def test_sources_that_fail_are_shown(self):
        config = ("[decide]\nfirst_after = 8\nevery = 16\nwindow = 32\nmove_cost = 0.5\n[models.model]\nranks = 8\nredundant = 8\n"
                  "[[source]]\nmodel = \"model\"\npoll_seconds = 0.1\npath = \"{}\"\n")
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "loads.csv")
            service = self.service(config=config.format(path))
            page = self.open(service)
            page.wait("!document.getElementById('sources').hidden")
            self.assertIn("No loads of model yet.", page.text("#empty-title"))
            page.wait("document.getElementById('link-words').innerText === 'no loads yet'")
            self.assertIn("1 source of model fails: loads may be missing.", page.text("#sources"))
            self.assertRegex(page.text("#sources-list"), rf"{path} \(all\): No such file or directory.*Since \d\d:\d\d:\d\d, [\d,]+ errors?\.")
            self.accessible(page, "a source fails")
            self.picture(page, "source-fails")
            with open(path, "w") as file:
                file.write("step,layer,expert,tokens\n")
                for step in range(9):
                    file.writelines(f"{step},0,{expert},{50 // (1 + expert)}\n" for expert in range(8))
            page.wait(READY, 30)
            page.wait("document.getElementById('sources').hidden")
            self.assertEqual(page.complaints(), [])

    def test_what_a_copy_costs_is_shown_with_what_is_assumed(self):
        service = self.service(config="[decide]\nfirst_after = 8\nevery = 16\nwindow = 32\n")
        service.make(link_gbps=400)
        service.post(0, 8)
        page = self.open(service)
        page.wait(READY)
        self.assertEqual(page.text("#copies"), "A copy takes 1.0 ms: an expert of gpt-oss-20b:bf16 (assumed) over 400 Gbit/s, weighed against "
                         "batches on h100 (assumed). Copies may take 1.0\u00a0% of the time, at 10 ms a step; so far they took 0\u00a0%.")
        self.accessible(page, "what a copy costs")
        self.picture(page, "copies")

    def test_large_models_stay_quick(self):
        for layers, experts, ranks in [(61, 256, 32), (92, 512, 64)]:
            service = self.service(config="[decide]\npolicy = \"eplb\"\nfirst_after = 4\nevery = 100000\nmin_every = 100000\n")
            service.make(ranks=ranks, redundant=ranks, nodes=8)
            service.post(0, 4, layers=layers, experts=experts)
            service.ask("GET", "/v1/models/model/plan?wait=60").clear()
            page = self.open(service)
            page.wait(f"{READY} && document.getElementById('heat-grid').getAttribute('aria-rowcount') === '{layers}'")
            took = page.eval("""(async () => {
                const {Heatmap} = await import("/page/heatmap.js");
                const view = await (await fetch("/v1/models/model/view")).json();
                const heat = new Heatmap();
                const times = [];
                for (let at = 0; at < 20; at += 1) {
                    for (const line of view.heat) line.ranks = line.ranks.map(() => 2 * Math.random());
                    const begun = performance.now();
                    heat.show({now: view.heat, ranks: view.ranks});
                    document.getElementById("heat-canvas").getContext("2d").getImageData(0, 0, 1, 1);
                    times.push(performance.now() - begun);
                }
                return times.sort((a, b) => a - b)[10];
            })()""")
            print(f"{layers} layers x {ranks} ranks: {took:.1f} ms to draw (median of 20)", file=sys.stderr)
            self.accessible(page, f"{layers} layers")
            self.picture(page, f"large-{layers}")


if __name__ == "__main__":
    if find() is None:
        sys.exit(subprocess.call([SKIPPED, "no Chromium", "crates/serve/tests/page/test_page.py"]))
    unittest.main(verbosity=2)
