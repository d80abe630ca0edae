//! `registry`: which instances of a service there are.

use std::collections::BTreeMap;
use std::time::Duration;

use dogsled::cluster::{Client, Instance, Pick, Registry};
use serde_json::{Value, json};

use super::running::{Always, check, cluster, exit, run_under};
use crate::cli::args::{Global, RegistryCommand, RunArgs};
use crate::cli::bytes;
use crate::cli::exit::{Failure, Result};
use crate::cli::output::Output;

/// The wait after the cluster was not reached.
const AGAIN: Duration = Duration::from_secs(1);

pub(crate) fn registry(global: &Global, out: &mut Output, command: &RegistryCommand) -> Result<()> {
    match command {
        RegistryCommand::Register { service, address, id, tags, run } => {
            let id = id.as_ref().unwrap_or(address);
            if id.is_empty() {
                return Err(Failure::usage("an instance without id cannot be told from others"));
            }
            let instance = Instance { id: id.clone(), address: address.clone(), tags: tags.clone() };
            register(global, service, &instance, run)
        }
        RegistryCommand::Deregister { service, id } => {
            let remote = cluster(global, "services are")?;
            if !remote.wait(remote.client().registry(service)?.deregister(id))? {
                return Err(none_of(service, Some(id)));
            }
            if out.json {
                out.document(&json!({ "service": service, "id": id, "removed": true }))
            } else {
                Ok(())
            }
        }
        RegistryCommand::Instances { service, tag } => {
            let remote = cluster(global, "services are")?;
            let instances = remote.wait(remote.client().registry(service)?.instances())?;
            let is_fit = |instance: &&Instance| tag.as_ref().is_none_or(|tag| instance.has_tag(tag));
            instances
                .iter()
                .filter(is_fit)
                .try_for_each(|instance| out.summary(line(instance), fields(instance)))
        }
        RegistryCommand::Pick { service, key, tag } => {
            use std::os::unix::ffi::OsStrExt;
            let remote = cluster(global, "services are")?;
            let resolver = remote.wait(remote.client().registry(service)?.follow())?;
            let how = key.as_ref().map_or(Pick::Random, |key| Pick::Key(key.as_bytes()));
            let picked =
                resolver.pick_where(how, |instance| tag.as_ref().is_none_or(|tag| instance.has_tag(tag)));
            let picked = picked.ok_or_else(|| none_of(service, None))?;
            out.summary(bytes::display(picked.address.as_bytes()), fields(&picked))
        }
        RegistryCommand::Follow { service, limit } => follow(global, out, service, *limit),
    }
}

fn none_of(service: &str, id: Option<&str>) -> Failure {
    Failure::not_found(match id {
        Some(id) => format!("service {service:?} has no instance {id:?}"),
        None => format!("service {service:?} has no such instance"),
    })
}

fn line(instance: &Instance) -> String {
    let Instance { id, address, tags } = instance;
    // Whoever registers may write anything there, and a line is to be one.
    let [id, address, tags] = [id, address, &tags.join(",")].map(|text| bytes::display(text.as_bytes()));
    format!("{id}\t{address}\t{tags}")
}

fn fields(instance: &Instance) -> Value {
    json!({ "id": instance.id, "address": instance.address, "tags": instance.tags })
}

fn register(global: &Global, service: &str, instance: &Instance, run: &RunArgs) -> Result<()> {
    check(run, "dogsled registry register SERVICE ADDRESS -- command")?;
    let remote = cluster(global, "services are")?;
    let ended = remote.wait(async {
        let registry = remote.client().registry(service)?;
        let mut session = remote.client().session(Duration::from_secs(run.lease));
        // The first time it is an error if that fails.
        registry.register(&session, instance).await?;
        let environment =
            [("DOGSLED_SERVICE", service.into()), ("DOGSLED_INSTANCE", instance.id.clone().into())];
        let ended = tokio::select! {
            ended = run_under(&Always, run, environment) => ended,
            never = stay(remote.client(), &registry, instance, run, &mut session) => match never {},
        };
        // If it is not heard, the lease ends it.
        let _ = session.close().await;
        ended
    })?;
    exit(remote, ended, || unreachable!("nothing that the command runs under can be lost"))
}

/// Makes the instance known again whenever its session was lost.
async fn stay(
    client: &Client,
    registry: &Registry,
    instance: &Instance,
    run: &RunArgs,
    session: &mut dogsled::cluster::Session,
) -> std::convert::Infallible {
    loop {
        session.lost().await;
        *session = client.session(Duration::from_secs(run.lease));
        while registry.register(session, instance).await.is_err() && !session.is_lost() {
            tokio::time::sleep(AGAIN).await;
        }
    }
}

fn follow(global: &Global, out: &mut Output, service: &str, limit: Option<u64>) -> Result<()> {
    let remote = cluster(global, "services are")?;
    let resolver = remote.wait(remote.client().registry(service)?.follow())?;
    let mut changes = resolver.changes();
    let mut news = resolver.instances();
    let mut known: BTreeMap<String, Instance> = BTreeMap::new();
    let mut lines = 0;
    loop {
        let now: BTreeMap<_, _> = news.into_iter().map(|instance| (instance.id.clone(), instance)).collect();
        let gone = known.keys().filter(|id| !now.contains_key(*id)).map(|id| (id, None));
        let come = now.iter().filter(|(id, instance)| known.get(*id) != Some(instance));
        for (id, instance) in gone.chain(come.map(|(id, instance)| (id, Some(instance)))) {
            if limit.is_some_and(|limit| lines >= limit) {
                return Ok(());
            }
            lines += 1;
            match instance {
                Some(instance) => {
                    let mut document = fields(instance);
                    document["event"] = "put".into();
                    out.summary(format_args!("+\t{}", line(instance)), document)?;
                }
                None => out.summary(format_args!("-\t{id}"), json!({ "event": "removed", "id": id }))?,
            }
        }
        out.finish()?;
        known = now;
        if limit.is_some_and(|limit| lines >= limit) {
            return Ok(());
        }
        match remote.wait(changes.next()) {
            Some(instances) => news = instances,
            None => return Ok(()),
        }
    }
}
