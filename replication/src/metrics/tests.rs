//! What a node's figures count, and what they never tell: keys and values.

use dogsled_storage::codec::encode_group_command;
use dogsled_storage::{Command, GroupCommand, Operation, TreeId};

use super::*;

fn put(tree: &str) -> Vec<u8> {
    let command = Command::Put { tree: TreeId(0), key: "secret key".into(), value: "secret value".into() };
    let operation = Operation::Command(command);
    encode_group_command(&GroupCommand { session: None, time_ms: 7, trees: vec![tree.into()], operation })
        .unwrap()
}

fn reply(result: Result<dogsled_storage::Answer, Refusal>) -> GroupReply {
    GroupReply { position: 1, time_ms: 7, result }
}

fn samples(families: &[Family], name: &str) -> Vec<Sample> {
    families.iter().find(|family| family.name == name).unwrap_or_else(|| panic!("no {name}")).samples.clone()
}

#[test]
fn commands_are_counted_by_kind_and_group_and_refusals_by_reason() {
    let metrics = NodeMetrics::default();
    let (one, two) = (metrics.group(1), metrics.group(2));
    let quick = Duration::from_micros(9);
    let done = reply(Ok(dogsled_storage::Answer::Done));
    metrics.carried_out((1, &one), &put("dogs"), &done, quick, || unreachable!("it was quick"));
    metrics.carried_out((2, &two), &put("dogs"), &done, quick, || unreachable!("it was quick"));
    let refused = reply(Err(Refusal::TooLarge("much".to_owned())));
    metrics.carried_out((2, &two), &put("dogs"), &refused, quick, || unreachable!("it was quick"));
    metrics.failed(&ClusterError::Denied("no".to_owned()));
    let families = metrics.families();
    let by_group = samples(&families, "dogsled_commands_total");
    let told: Vec<_> =
        by_group.iter().map(|s| (s.labels[0].1.as_ref(), s.labels[1].1.as_ref(), &s.value)).collect();
    assert_eq!(told, [("put", "1", &SampleValue::Whole(1)), ("put", "2", &SampleValue::Whole(2))]);
    let durations = samples(&families, "dogsled_command_duration_seconds");
    assert!(
        matches!(&durations[..], [Sample { value: SampleValue::Distribution(all), .. }] if all.count() == 3),
        "{durations:?}"
    );
    let counted = |name: &str| -> Vec<String> {
        let counted = samples(&families, name).into_iter().filter(|s| s.value != SampleValue::Whole(0));
        counted.map(|sample| sample.labels[0].1.to_string()).collect()
    };
    assert_eq!(counted("dogsled_commands_refused_total"), ["too_large"]);
    assert_eq!(counted("dogsled_requests_failed_total"), ["denied"]);
}

#[test]
fn a_slow_command_is_told_by_name_and_tree_without_what_it_carries() {
    let metrics = NodeMetrics::default();
    let took = Duration::from_secs(2);
    let done = reply(Ok(dogsled_storage::Answer::Done));
    metrics.carried_out((3, &metrics.group(3)), &put("dogs"), &done, took, || 77);
    let slow = metrics.slow_commands(78);
    assert_eq!(slow.len(), 1, "{slow:?}");
    assert_eq!((slow[0].operation, slow[0].group, &slow[0].tree[..]), ("put", 3, "dogs"));
    assert_eq!((slow[0].took, slow[0].at_ms), (took, 77));
    assert!(!format!("{slow:?}").contains("secret"));
}

#[tokio::test(start_paused = true)]
async fn a_batch_is_replicated_when_its_application_begins() {
    let metrics = NodeMetrics::default().group(1);
    let handed = |entries| Handed {
        through: oneshot::channel().0,
        metrics: Arc::clone(&metrics),
        at: Instant::now(),
        entries,
    };
    tokio::time::advance(Duration::from_secs(1)).await;
    let batch = handed(5);
    tokio::time::advance(Duration::from_millis(30)).await;
    let began = metrics.apply_begins();
    tokio::time::advance(Duration::from_millis(500)).await;
    metrics.applied(began);
    batch.answered();
    let replicated = metrics.stage(Stage::Replicate).read();
    assert_eq!((replicated.count(), replicated.sum()), (5, Duration::from_millis(150)));
    assert_eq!(metrics.stage(Stage::Apply).read().sum(), Duration::from_millis(500));
    // One that is refused because leadership was lost: nothing was applied since.
    tokio::time::advance(Duration::from_millis(1)).await;
    handed(7).answered();
    assert_eq!(metrics.stage(Stage::Replicate).read().count(), 5);
}
