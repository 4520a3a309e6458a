import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient
from prometheus_client import REGISTRY
from prometheus_client.parser import text_string_to_metric_families

from gpr_rl.decoding import Recommender, beam_search
from gpr_rl.serve.app import make_app
from tests.gpr_rl.serve.conftest import GatedModel

LONG_S = 60.0


@contextmanager
def client_of(
    model: GatedModel, world: Any, limits: dict[str, int] | None = None, **sizes: Any
) -> Iterator[TestClient]:
    recommender = Recommender(model, world, **{"deadline_ms": 0, "num_candidates": 5} | sizes)
    app = make_app(recommender, world, **limits or {})
    with TestClient(app, raise_server_exceptions=False) as client:
        try:
            yield client
        finally:
            model.gate.set()  # the application's end waits for those behind it


@pytest.fixture
def client(model, world) -> Iterator[TestClient]:
    with client_of(model, world) as found:
        yield found


def metrics(client: TestClient) -> dict[tuple[str, tuple[str, ...]], float]:
    text = client.get("/metrics").text
    return {
        (sample.name, tuple(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def ask(client: TestClient, *request_ids: int) -> Any:
    wanted = [{"request_id": i} for i in request_ids]
    return client.post("/recommend", json={"requests": wanted})


def await_queue(client: TestClient, length: int) -> None:
    while client.get("/healthz").json()["queue_length"] < length:
        pass


class TestAnswers:
    def test_hold_what_a_search_and_the_rankers_say(self, client, hhd, world) -> None:
        i = world.request_ids("test")[7:8]
        said = client.post("/recommend", json={"request_id": int(i)})
        assert said.status_code == 200
        answer = said.json()
        direct = beam_search(hhd, world.request(i), world.trie, 5, world.eligible(i))
        outcome = world.outcome(i, direct.ad_id)
        assert answer["request_id"] == int(i)
        assert answer["user_id"] == world.request_user[int(i)]
        assert (answer["width"], answer["cached"], answer["catalogue_version"]) == (5, False, 0)
        assert answer["latency_ms"] > 0
        ads = answer["ads"]
        assert [ad["ad_id"] for ad in ads] == direct.ad_id[0].tolist()
        assert [ad["codes"] for ad in ads] == direct.codes[0].tolist()
        for k, ad in enumerate(ads):
            assert ad["level_log_probs"] == pytest.approx(direct.log_prob[0, k].tolist(), rel=1e-5)
            assert ad["log_prob"] == pytest.approx(sum(ad["level_log_probs"]))
            assert ad["value"] == pytest.approx(float(direct.value[0, k, -1]), rel=1e-4, abs=1e-6)
            assert ad["ecpm"] == pytest.approx(float(outcome.ecpm[0, k]), rel=1e-5)
            row = world.ads.iloc[ad["ad_id"]]
            assert (ad["category"], ad["advertiser"]) == (row["category"], row["advertiser"])
            assert ad["name"] == f"ad {ad['ad_id']}"

    def test_of_a_user_are_to_the_latest_request(self, client, world) -> None:
        for user in (0, 3, 11):
            own = np.flatnonzero(world.request_user == user)
            latest = own[world.request_time[own].argmax()]
            answer = client.post("/recommend", json={"user_id": user}).json()
            assert world.request_time[answer["request_id"]] == world.request_time[latest]
            assert answer["user_id"] == user

    def test_come_again_from_the_cache(self, client) -> None:
        first, second = (client.post("/recommend", json={"user_id": 3}).json() for _ in range(2))
        assert (first["cached"], second["cached"]) == (False, True)
        assert first["ads"] == second["ads"]

    def test_to_several_requests_are_in_their_order(self, client, world) -> None:
        ids = world.request_ids("test")[:4].tolist()
        wanted = [{"request_id": i, "num_candidates": k} for k, i in enumerate(ids, start=1)]
        answers = client.post("/recommend", json={"requests": wanted}).json()["answers"]
        assert [answer["request_id"] for answer in answers] == ids
        assert [len(answer["ads"]) for answer in answers] == [1, 2, 3, 4]
        for answer in answers:
            alone = client.post("/recommend", json={"request_id": answer["request_id"]}).json()
            number = len(answer["ads"])
            assert [ad["ad_id"] for ad in answer["ads"]] == [
                ad["ad_id"] for ad in alone["ads"][:number]
            ]
            ecpm = [ad["ecpm"] for ad in alone["ads"][:number]]
            assert [ad["ecpm"] for ad in answer["ads"]] == pytest.approx(ecpm, rel=1e-5)

    def test_name_ads_as_the_table_does(self, model, world) -> None:
        names = [f"shoe {i}" if i % 2 else None for i in range(world.num_ads)]
        named = world.replace(ads=world.ads.assign(name=names))
        with client_of(model, named, num_candidates=40) as client:
            ads = client.post("/recommend", json={"user_id": 3}).json()["ads"]
        assert {ad["ad_id"] % 2 for ad in ads} == {0, 1}
        for ad in ads:
            assert ad["name"] == f"{'shoe' if ad['ad_id'] % 2 else 'ad'} {ad['ad_id']}"

    def test_are_empty_where_no_ad_may_be_shown(self, model, world, monkeypatch) -> None:
        none = torch.zeros(1, world.num_ads, dtype=torch.bool)
        monkeypatch.setattr(world, "eligible", lambda request_id: none)
        with client_of(model, world) as client:
            said = client.post("/recommend", json={"user_id": 3})
        assert said.status_code == 200
        assert said.json()["ads"] == []

    def test_hold_no_number_that_json_lacks(self, model, world, monkeypatch) -> None:
        monkeypatch.setattr(
            model.model.hte, "prefix_value", lambda hidden, level: hidden.sum(-1) * torch.nan
        )
        with client_of(model, world) as client:
            said = client.post("/recommend", json={"user_id": 3})
        assert said.status_code == 200
        assert {ad["value"] for ad in said.json()["ads"]} == {None}


class TestRefusals:
    @pytest.mark.parametrize(
        "body",
        [
            {},
            {"request_id": 1, "user_id": 1},
            {"user_id": -1},
            {"user_id": 2**63},
            {"user_id": "3"},
            {"user_id": 3.0},
            {"user_id": True},
            {"user_id": 3, "num_candidates": 0},
            {"user_id": 3, "num_candidates": 6},
            {"user_id": 3, "colour": "red"},
            {"requests": []},
            {"requests": [{"user_id": 3}] * 65},
            {"requests": [{"user_id": 3}], "user_id": 3},
            {"requests": [{"user_id": 3}], "num_candidates": 3},
            {"requests": [{"user_id": 3, "request_id": 1}]},
            {"requests": [{"user_id": 3, "num_candidates": 6}]},
            [3],
            None,
        ],
    )
    def test_of_a_wrong_body(self, client, body) -> None:
        said = client.post("/recommend", json=body)
        assert said.status_code == 422
        assert said.json()["detail"]

    @pytest.mark.parametrize("text", ['{"user_id": NaN}', '{"user_id": 1e999}', "{", "[" * 30_000])
    def test_of_what_is_hardly_json(self, client, text) -> None:
        said = client.post("/recommend", content=text, headers={"Content-Type": "application/json"})
        assert said.status_code in (400, 422)
        assert json.loads(said.text)["detail"]

    def test_do_not_repeat_what_was_sent(self, client) -> None:
        said = client.post("/recommend", json={"user_id": "<script>"})
        assert "script" not in said.text

    def test_of_what_the_world_lacks(self, client, world) -> None:
        for body, words in (
            ({"request_id": world.num_requests}, f"unknown request {world.num_requests}"),
            ({"user_id": len(world.users)}, f"unknown user {len(world.users)}"),
            ({"requests": [{"user_id": 0}, {"user_id": 2**62}]}, f"unknown user {2**62}"),
        ):
            said = client.post("/recommend", json=body)
            assert (said.status_code, said.json()) == (404, {"detail": words})
        assert client.get("/nothing").status_code == 404
        assert client.get("/recommend").status_code == 405

    def test_of_a_user_without_requests(self, model, world) -> None:
        more = world.replace(users=world.users.iloc[[*range(len(world.users)), 0]])
        with client_of(model, more) as client:
            said = client.post("/recommend", json={"user_id": len(world.users)})
        assert (said.status_code, said.json()["detail"]) == (404, "user 200 has no request")

    def test_of_a_large_body_stated_or_not(self, model, world) -> None:
        with client_of(model, world, {"max_body_bytes": 100}) as client:
            fits = json.dumps({"user_id": 3}).ljust(100)
            head = {"Content-Type": "application/json"}
            assert client.post("/recommend", content=fits, headers=head).status_code == 200
            assert client.post("/recommend", content=fits + " ", headers=head).status_code == 413
            parts = (part.encode() for part in (fits, " "))
            said = client.post("/recommend", content=parts, headers=head)
            assert "Content-Length" not in said.request.headers
            assert (said.status_code, said.json()["detail"]) == (
                413,
                "the body may have 100 bytes at most",
            )

    def test_of_a_full_queue_are_immediate(self, model, world) -> None:
        ids = world.request_ids("test")[:4].tolist()
        with (
            client_of(model, world, max_batch=1, max_queue=2) as client,
            ThreadPoolExecutor() as pool,
        ):
            model.gate.clear()
            searched = pool.submit(ask, client, ids[0])
            assert model.entered.acquire(timeout=LONG_S)
            waiting = pool.submit(ask, client, *ids[1:3])
            await_queue(client, 2)
            said = ask(client, ids[3])  # the gate is still shut
            assert said.status_code == 503
            assert int(said.headers["Retry-After"]) >= 1
            assert "overloaded: 2 requests wait already" in said.json()["detail"]
            assert metrics(client)["gpr_rl_requests_total", ("refused",)] == 1
            model.gate.set()
            assert len(searched.result().json()["answers"]) == 1
            assert len(waiting.result().json()["answers"]) == 2
            assert ask(client, ids[3]).status_code == 200

    def test_of_several_that_do_not_fit_leave_nothing_behind(self, model, world) -> None:
        ids = world.request_ids("test")[:5].tolist()
        with (
            client_of(model, world, max_batch=1, max_queue=3) as client,
            ThreadPoolExecutor() as pool,
        ):
            model.gate.clear()
            searched = pool.submit(ask, client, ids[0])
            assert model.entered.acquire(timeout=LONG_S)
            waiting = pool.submit(ask, client, ids[1])
            await_queue(client, 1)
            assert ask(client, *ids[2:5]).status_code == 503  # two of them fit
            model.gate.set()
            assert searched.result().status_code == waiting.result().status_code == 200
            recommender = client.app.state.recommender
            while recommender.stats().pending:  # the cancelled ones are found as their turn comes
                pass
            assert ask(client, *ids[2:5]).status_code == 200
            stats = recommender.stats()
        assert (stats.accepted, stats.answered, stats.cancelled, stats.refused) == (7, 5, 2, 1)

    def test_of_several_that_would_never_fit_are_no_overload(self, model, world) -> None:
        with client_of(model, world, max_batch=2, max_queue=3) as client:
            said = client.post("/recommend", json={"requests": [{"user_id": 3}] * 4})
        assert (said.status_code, said.json()["detail"]) == (
            422,
            "there may be 3 requests in a call at most",
        )

    def test_of_more_than_may_be_under_way(self, model, world) -> None:
        with client_of(model, world, {"max_in_flight": 2}) as client:
            three = {"requests": [{"user_id": i} for i in range(3)]}
            assert client.post("/recommend", json=three).status_code == 503
            for _ in range(3):
                two = {"requests": [{"user_id": i} for i in range(2)]}
                assert client.post("/recommend", json=two).status_code == 200

    def test_of_a_service_that_stops(self, client) -> None:
        recommender = client.app.state.recommender
        assert client.get("/healthz").json()["status"] == "ok"
        recommender.close()
        said = client.post("/recommend", json={"user_id": 3})
        assert said.status_code == 503
        assert said.headers["Retry-After"] == "1"
        health = client.get("/healthz")
        assert (health.status_code, health.json()["status"]) == (503, "draining")


class TestFailures:
    @pytest.mark.parametrize("error", [RuntimeError("secret_name"), StopIteration(), SystemExit(3)])
    def test_say_nothing_of_the_inside_and_pass(self, client, model, error) -> None:
        def fault() -> None:
            raise error

        model.fault = fault
        said = client.post("/recommend", json={"user_id": 3})
        assert said.status_code == 500
        assert said.json() == {"detail": "the service failed; its log says why"}
        model.fault = lambda: None
        assert client.post("/recommend", json={"user_id": 3}).status_code == 200
        counts = metrics(client)
        assert counts["gpr_rl_requests_total", ("failed",)] == 1
        assert counts["gpr_rl_http_responses_total", ("/recommend", "500")] == 1


class TestMetrics:
    def test_are_those_of_the_service_alone(self, client) -> None:
        before = {family.name for family in REGISTRY.collect()}
        for _ in range(3):
            client.post("/recommend", json={"user_id": 3})
        client.post("/recommend", json={})
        client.get("/favicon.ico")
        counts = metrics(client)
        assert counts["gpr_rl_requests_total", ("accepted",)] == 3
        assert counts["gpr_rl_requests_total", ("hits",)] == 2
        assert counts["gpr_rl_cache_hit_ratio", ()] == pytest.approx(2 / 3)
        assert counts["gpr_rl_queue_length", ()] == 0
        assert counts["gpr_rl_beam_width", ()] == 5
        assert counts["gpr_rl_catalogue_version", ()] == 0
        latency = [counts["gpr_rl_latency_seconds", (q,)] for q in ("0.5", "0.95", "0.99")]
        assert 0 <= latency[0] <= latency[1] <= latency[2]
        assert counts["gpr_rl_http_responses_total", ("/recommend", "200")] == 3
        assert counts["gpr_rl_http_responses_total", ("/recommend", "422")] == 1
        assert counts["gpr_rl_http_responses_total", ("other", "404")] == 1
        assert counts["gpr_rl_http_seconds_count", ("/recommend",)] == 4
        assert {family.name for family in REGISTRY.collect()} == before

    def test_exist_before_the_first_request(self, client) -> None:
        counts = metrics(client)
        assert counts["gpr_rl_requests_total", ("accepted",)] == 0
        assert np.isnan(counts["gpr_rl_latency_seconds", ("0.99",)])


def test_the_end_of_the_application_closes_the_service(model, world) -> None:
    with client_of(model, world) as client:
        recommender = client.app.state.recommender
        assert not recommender.closed
    assert recommender.closed
