//! Nodes of a live cluster.

use std::collections::BTreeSet;

use anyhow::Context;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::{
    Api, Client, Config,
    api::ListParams,
    config::{KubeConfigOptions, Kubeconfig},
};
use serde::de::DeserializeOwned;

use super::{Args, Sources};

/// Objects per answer, so that no single one is larger than a server likes to give.
const PAGE: u32 = 500;

pub(super) fn fetch(args: &Args) -> anyhow::Result<Sources> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(read(args))
}

async fn read(args: &Args) -> anyhow::Result<Sources> {
    let client = client(args).await?;
    let unfinished = ListParams::default().fields("status.phase!=Succeeded,status.phase!=Failed");
    let pods = Api::<Pod>::all(client.clone());
    let (nodes, shown, classes, pods, slices) = tokio::join!(
        all(Api::all(client.clone()), ListParams::default()),
        selected(&client, args.selector.as_deref()),
        all(Api::all(client.clone()), ListParams::default()),
        all(pods, unfinished),
        async {
            if args.resource_slices {
                all(Api::all(client.clone()), ListParams::default()).await
            } else {
                Ok(vec![])
            }
        },
    );
    // Who may list nodes may often not list pods, and a cluster without our CRDs has no GPUClass.
    let pods = unless_refused(pods).context("cannot list Pods")?;
    Ok(Sources {
        nodes: nodes.context("cannot list Nodes")?,
        classes: unless_refused(classes).context("cannot list GPUClasses")?.unwrap_or_default(),
        slices: slices.context("cannot list ResourceSlices")?,
        shown: shown.context("cannot list Nodes with --selector")?,
        pods,
    })
}

/// Names of the nodes that match, by the server's rule. All nodes are judged all the same: what one counts as depends on
/// the others.
async fn selected(client: &Client, selector: Option<&str>) -> Result<Option<BTreeSet<String>>, kube::Error> {
    let Some(selector) = selector else { return Ok(None) };
    let nodes: Vec<Node> = all(Api::all(client.clone()), ListParams::default().labels(selector)).await?;
    Ok(Some(nodes.into_iter().filter_map(|node| node.metadata.name).collect()))
}

async fn client(args: &Args) -> anyhow::Result<Client> {
    let options = KubeConfigOptions { context: args.context.clone(), ..KubeConfigOptions::default() };
    let config = match &args.kubeconfig {
        Some(file) => {
            let kubeconfig =
                Kubeconfig::read_from(file).with_context(|| format!("cannot read `{}`", file.display()))?;
            Config::from_custom_kubeconfig(kubeconfig, &options).await?
        }
        None if args.context.is_some() => Config::from_kubeconfig(&options).await?,
        None => Config::infer().await.context(
            "there is no cluster to ask: set KUBECONFIG or --kubeconfig, or give nodes with -f nodes.json",
        )?,
    };
    Ok(Client::try_from(config)?)
}

async fn all<K>(api: Api<K>, params: ListParams) -> Result<Vec<K>, kube::Error>
where
    K: Clone + DeserializeOwned + std::fmt::Debug,
{
    let (mut params, mut found) = (params.limit(PAGE), Vec::new());
    loop {
        let page = api.list(&params).await?;
        found.extend(page.items);
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params = params.continue_token(&token),
            None => return Ok(found),
        }
    }
}

fn unless_refused<T>(listed: Result<T, kube::Error>) -> Result<Option<T>, kube::Error> {
    match listed {
        Ok(listed) => Ok(Some(listed)),
        Err(kube::Error::Api(status)) if status.is_forbidden() || status.is_not_found() => Ok(None),
        Err(error) => Err(error),
    }
}
