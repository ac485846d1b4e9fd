//! All credential headers of an API together say who asks, each value as it is. Callers, and APIs, never share a link.

use http::Method;
use serde_json::json;

use super::endpoint::*;
use crate::signing::{ACCESS_KEY, SECRET_KEY, Unsigned, knows};

const SUPABASE: &str = "[[batch]]\npreset = \"supabase-storage\"";
const SIGN: &str = "/storage/v1/object/sign/b";

/// Says in each item which credentials its call had.
fn supabase(asked: &Asked) -> Answer {
    let who = format!("{}|{}", asked.header("authorization"), asked.header("apikey"));
    let item = |path: &String| json!({"error": null, "path": path, "signedURL": "/object/x", "who": who});
    Answer::new(200, json!(asked.ids("/paths", "").iter().map(item).collect::<Vec<_>>()))
}

#[tokio::test]
async fn each_pair_of_two_credential_headers_is_a_caller_of_its_own() {
    let stack = Stack::start(SUPABASE, supabase).await;
    let body = json!({"paths": ["a"]}).to_string();
    let pairs = [("t", "k"), ("u", "k"), ("t", "l"), ("k", "t"), ("t", ""), ("", "t"), ("tk", ""), ("", "tk")];
    for round in 0..2 {
        for (authorization, apikey) in pairs {
            let mut headers = vec![("content-type", "application/json")];
            headers.extend([("authorization", authorization)].into_iter().filter(|(_, value)| !value.is_empty()));
            // An empty one counts as absent.
            headers.extend([("apikey", apikey)].into_iter().filter(|(_, value)| round == 1 || !value.is_empty()));
            let reply = stack.post(SIGN, &headers, &body).await;
            assert_eq!(status(&reply), if round == 0 { MISS } else { HIT }, "{authorization}|{apikey}");
            assert_eq!(reply.json()[0]["who"], format!("{authorization}|{apikey}"));
        }
    }
    assert_eq!(stack.endpoint.count(), pairs.len());
    let nobody = stack.post(SIGN, &[("content-type", "application/json")], &body).await;
    assert_eq!(status(&nobody), "fwd=bypass; detail=no-credential");
    let twice = [("apikey", "k"), ("apikey", "l"), ("authorization", "t")];
    assert_eq!(status(&stack.post(SIGN, &twice, &body).await), "fwd=bypass; detail=credentials");
    assert_eq!(stack.client.send(Method::POST, SIGN, &twice[1..], body).await.header("vary"), "authorization, apikey");
}

#[tokio::test]
async fn basic_and_bearer_credentials_are_callers_by_their_bytes() {
    let stack = Stack::start(GIT_LFS, has_all).await;
    let users = ["Basic YTpi", "Basic YTpj", "Bearer YTpi", "basic YTpi"];
    for round in 0..2 {
        for user in users {
            let reply = stack.lfs(user, &["a"]).await;
            assert_eq!(status(&reply), if round == 0 { MISS } else { HIT }, "{user}");
            let asked = Asked {
                headers: [(http::header::AUTHORIZATION, user.parse().unwrap())].into_iter().collect(),
                ..stack.endpoint.last()
            };
            assert_eq!(reply.json()["objects"][0], object(&asked, "a"), "{user}");
        }
    }
}

#[tokio::test]
async fn a_credential_that_the_endpoint_refuses_loses_all_it_had_and_no_other_does() {
    let stack = Stack::start(GIT_LFS, |asked: &Asked| match (asked.header("authorization"), &*asked.oids().concat()) {
        ("Basic t", "out") => Answer::new(401, r#"{"message":"who?"}"#).with("lfs-authenticate", "Basic realm=\"x\""),
        ("Basic t", "forbidden") => Answer::new(403, r#"{"message":"no"}"#),
        _ => has_all(asked),
    })
    .await;
    for user in ["Basic t", "Basic u"] {
        assert_eq!(status(&stack.lfs(user, &["a"]).await), MISS);
    }
    for _ in 0..2 {
        let refused = stack.lfs("Basic t", &["forbidden"]).await;
        assert_eq!((refused.status.as_u16(), &*refused.body), (403, &br#"{"message":"no"}"#[..]));
    }
    assert_eq!(stack.endpoint.count(), 3, "the refusal of one object alone is remembered");
    assert_eq!(status(&stack.lfs("Basic t", &["a"]).await), HIT, "a 403 concerns its objects alone");
    let out = stack.lfs("Basic t", &["out"]).await;
    assert_eq!((out.status.as_u16(), out.header("lfs-authenticate")), (401, "Basic realm=\"x\""));
    assert_eq!(status(&stack.lfs("Basic u", &["a"]).await), HIT);
    assert_eq!(status(&stack.lfs("Basic t", &["a"]).await), MISS);
}

/// A 401 says nothing of other credentials, also where a part of them, or their bytes, are the same.
#[tokio::test]
async fn a_credential_that_one_api_refuses_loses_what_every_api_brought_and_no_other_credential_does() {
    let described = |name: &str, credentials: &str| {
        let rest = "ids = { body = \"/ids\" }\nitems = { at = \"/items\", key = \"/id\", link = \"/url\" }";
        format!("[[batch]]\nname = \"{name}\"\npath = \"/{name}\"\n{rest}\ncredentials = {credentials}\n")
    };
    let tables = [
        described("one", r#""authorization""#),
        described("two", r#""authorization""#),
        described("key", r#""x-key""#),
        described("both", r#"["authorization", "x-key"]"#),
        described("turned", r#"["x-key", "authorization"]"#),
    ];
    let stack = Stack::start(&tables.concat(), |asked: &Asked| {
        let ids = asked.ids("/ids", "");
        if ids == ["out"] {
            return Answer::new(401, "{}");
        }
        let item = |id: &String| json!({"id": id, "url": "https://cdn.test/"});
        Answer::new(200, json!({"items": ids.iter().map(item).collect::<Vec<_>>()}))
    })
    .await;
    let ask = async |path: &str, user: &str, id: &str| {
        let headers = [("authorization", user), ("x-key", user)];
        stack.post(path, &headers, json!({ "ids": [id] })).await
    };
    let paths = ["/one", "/two", "/key", "/both", "/turned"];
    for (refused, lost) in [("/one", &["/one", "/two"][..]), ("/key", &["/key"]), ("/turned", &["/both", "/turned"])] {
        for path in paths {
            ask(path, "t", "a").await;
            ask(path, "u", "a").await;
        }
        assert_eq!(ask(refused, "t", "out").await.status.as_u16(), 401);
        for path in paths {
            let expected = if lost.contains(&path) { MISS } else { HIT };
            assert_eq!(status(&ask(path, "t", "a").await), expected, "{refused}: {path}");
            assert_eq!(status(&ask(path, "u", "a").await), HIT, "{refused}: {path}");
        }
    }
}

#[tokio::test]
async fn an_access_key_that_one_api_refuses_loses_what_every_api_brought() {
    let described = |name: &str| {
        let rest = "ids = { query = \"id\" }\nitems = { at = \"\", key = \"/id\", link = \"/url\" }\nsigned = true\ncredentials = \"x-auth-token\"";
        format!("[[batch]]\nname = \"{name}\"\npath = \"/{name}\"\n{rest}\n")
    };
    let tables = [described("one"), described("two")].concat();
    let answer = |asked: &Asked| match asked.target.split_once("?id=") {
        Some((_, "out")) => Answer::new(401, "{}"),
        _ => Answer::new(200, json!([{"id": "a", "url": "https://cdn.test/"}])),
    };
    let stack = Stack::with(&tables, |config| knows(config, ACCESS_KEY, SECRET_KEY), answer).await;
    let ask = async |target: &str| {
        let signed = Unsigned::get(stack.client.address, target, &stack.clock).sign();
        let headers: Vec<_> = signed.iter().map(|(name, value)| (*name, value.as_str())).collect();
        status(&stack.client.get(target, &headers).await).to_owned()
    };
    for expected in [MISS, HIT] {
        assert_eq!([ask("/one?id=a").await, ask("/two?id=a").await], [expected, expected]);
    }
    assert_eq!(ask("/one?id=out").await, "fwd=miss; fwd-status=401");
    assert_eq!([ask("/one?id=a").await, ask("/two?id=a").await], [MISS, MISS]);
}

/// Two APIs whose requests differ in nothing but the path.
#[tokio::test]
async fn two_apis_at_once_never_share_an_item() {
    let described = |name: &str| {
        let rest = "ids = { body = \"/ids\" }\nitems = { at = \"/items\", key = \"/id\", link = \"/url\" }";
        format!("[[batch]]\nname = \"{name}\"\npath = \"/{name}\"\n{rest}\n")
    };
    let tables = [described("one"), described("two"), GIT_LFS.to_owned(), SUPABASE.to_owned()].join("\n");
    let stack = Stack::start(&tables, |asked: &Asked| match &*asked.target {
        LFS_PATH => has_all(asked),
        SIGN => supabase(asked),
        path => {
            let item = |id: &String| json!({"id": id, "url": format!("https://cdn.test{path}/{id}")});
            Answer::new(200, json!({"items": asked.ids("/ids", "").iter().map(item).collect::<Vec<_>>()}))
        }
    })
    .await;
    let (headers, body) = ([("authorization", "t")], json!({"ids": ["a"], "paths": ["a"]}).to_string());
    for round in 0..2 {
        for path in ["/one", "/two"] {
            let reply = stack.post(path, &headers, &body).await;
            assert_eq!(status(&reply), if round == 0 { MISS } else { HIT });
            assert_eq!(reply.json()["items"][0]["url"], format!("https://cdn.test{path}/a"));
        }
        for reply in [stack.lfs("t", &["a"]).await, stack.post(SIGN, &headers, &body).await] {
            assert_eq!(status(&reply), if round == 0 { MISS } else { HIT });
        }
    }
    assert_eq!(stack.endpoint.count(), 4);
}
