"""kv_exact with real workers: what they tell of their pages is where prompts go, and what is really reused."""
import json

from conftest import http_get, wait_until


def workers(c, role):
    ports = c.prefill_ports if role == "prefill" else c.decode_ports
    by = {w["address"]: w for w in json.loads(http_get(c.url + "/workers")[1])["workers"]}
    return [by[f"127.0.0.1:{p}"] for p in ports]


def ask(c, text):
    """-> (prefill worker's number or None, cached tokens)"""
    before = [w["submitted"] for w in workers(c, "prefill")]
    r = c.client().chat.completions.create(model="m", messages=[{"role": "user", "content": text}], max_tokens=2)
    gained = [b - a for a, b in zip(before, [w["submitted"] for w in workers(c, "prefill")])]
    return gained.index(1), r.usage.prompt_tokens_details.cached_tokens


def told(c, role, i):
    w = workers(c, role)[i]
    return w.get("reported", {}).get("page_events", 0)


def test_a_prompt_goes_to_the_prefill_worker_that_holds_its_pages(cluster):
    """Decode workers keep nothing here, so that only prefill workers' caches count."""
    c = cluster(n_prefill=2, decode_args=["--disable-radix-cache"])
    text = ["once upon a time there was a " + word + ", " + (word + " and more ") * 300 for word in ("fox", "hen")]
    home = {}
    for i in (0, 1):
        home[i], cached = ask(c, text[i])
        assert cached == 0
        wait_until("told", lambda: told(c, "prefill", home[i]) > 0)
    assert home[0] != home[1]  # the second one went where less had been given
    for _ in range(3):
        for i in (0, 1):
            where, cached = ask(c, text[i])
            assert where == home[i] and cached >= 512
    # A restarted worker holds nothing, and the router knows.
    c.prefills[home[0]].kill()
    wait_until("lost", lambda: workers(c, "prefill")[home[0]]["state"] != "ready")
    where, cached = ask(c, text[0])
    assert where == home[1] and cached == 0
    wait_until("told", lambda: told(c, "prefill", home[1]) > 0)
    c.prefills[home[0]] = c.start_prefill(home[0])
    wait_until("back", lambda: workers(c, "prefill")[home[0]].get("reported"))
    where, cached = ask(c, text[0])
    assert where == home[1] and cached >= 512
