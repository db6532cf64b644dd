//! `flexkv bench serve`: sends completions to serving instances and tells how long answers take
//! and where the KV of their prompts came from.
//!
//! Knows servers by the OpenAI API and vLLM's metrics alone: they need not run on this host.

mod report;
mod request;
mod scrape;
mod sources;
mod stream;
mod workload;

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use fastrand::Rng;
use indicatif::ProgressBar;
use serde::Deserialize;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

pub use self::report::{Report, Traffic};
use self::request::{Answer, Failure, Target};
use self::workload::Conversation;
pub use self::workload::{Shape, Workload};
use crate::http::{BaseUrl, Http};
use crate::report::{percent, progress};

/// How long an instance may take to tell its model.
const MODEL_WITHIN: Duration = Duration::from_secs(10);

/// Which instance gets a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Routing {
    /// One after the other.
    RoundRobin,
    /// Any.
    Random,
    /// A conversation, or prompts with a common beginning, stay at one.
    Hash,
}

/// How to send requests.
#[derive(Clone, Debug)]
pub struct BenchSpec {
    /// The first instance.
    pub base: BaseUrl,
    /// Instances, on consecutive ports.
    pub instances: usize,
    /// The model's name; the one that the instances serve if none.
    pub model: Option<String>,
    /// Requests in flight at most.
    pub concurrency: usize,
    /// Requests a second, in random distances; as fast as they are answered if none.
    pub rate: Option<f64>,
    /// Which instance gets a request.
    pub routing: Routing,
    /// Random choices are those of this seed.
    pub seed: u64,
    /// Longest wait for an answer.
    pub answered_within: Duration,
}

/// A model that instances serve.
#[derive(Debug, Deserialize)]
struct Model {
    id: String,
    max_model_len: Option<usize>,
}

#[derive(Deserialize)]
struct Models {
    data: Vec<Model>,
}

/// Sends `workload` as `spec` says.
pub async fn run(spec: &BenchSpec, workload: Workload) -> Result<Report> {
    let http = Http::default();
    let instances = instances(spec)?;
    let model = model(&http, &instances, spec.model.as_deref()).await?;
    let mut before = Vec::new();
    for base in &instances {
        before.push(scrape::scrape(&http, base).await);
    }
    let longest = model.max_model_len.unwrap_or(usize::MAX);
    let sender = Sender::new(spec, &instances, model.id, workload, longest, http.clone());
    let mut report = sender.send_all().await;
    for ((base, before), traffic) in instances.iter().zip(&before).zip(&mut report.instances) {
        let after = scrape::scrape_settled(&http, base).await;
        traffic.counts = before
            .as_ref()
            .zip(after)
            .map(|(before, after)| after.since(before));
    }
    Ok(report)
}

fn instances(spec: &BenchSpec) -> Result<Vec<BaseUrl>> {
    let instance = |number| {
        spec.base
            .next(number)
            .with_context(|| format!("{} has no port {number} further on", spec.base))
    };
    (0..spec.instances).map(instance).collect()
}

/// The model that the first instance which answers serves, by the name `wanted` or any.
async fn model(http: &Http, instances: &[BaseUrl], wanted: Option<&str>) -> Result<Model> {
    let mut errors = Vec::new();
    for base in instances {
        match http.get(&format!("{base}/v1/models"), MODEL_WITHIN).await {
            Ok((status, body)) => {
                let models: Models = serde_json::from_slice(&body)
                    .with_context(|| format!("{base}/v1/models answers {status}, no models"))?;
                let names: Vec<&str> = models.data.iter().map(|model| model.id.as_str()).collect();
                let known = names.join(", ");
                let chosen = |model: &Model| wanted.is_none_or(|wanted| model.id == wanted);
                return models.data.into_iter().find(chosen).with_context(|| {
                    let wanted = wanted.unwrap_or("any");
                    format!("{base} does not serve the model {wanted}; it serves: {known}")
                });
            }
            Err(error) => errors.push(format!("{base}: {error}")),
        }
    }
    bail!("no instance answers:\n{}", errors.join("\n"))
}

/// Sends the requests and gathers the answers.
struct Sender<'a> {
    spec: &'a BenchSpec,
    targets: Vec<Arc<Target>>,
    workload: Workload,
    longest: usize,
    rng: Rng,
    turn: usize,
    in_flight: JoinSet<Outcome>,
    report: Report,
    bar: ProgressBar,
}

/// A request that has ended.
struct Outcome {
    instance: usize,
    conversation: Conversation,
    answer: Result<Answer, Failure>,
}

impl<'a> Sender<'a> {
    fn new(
        spec: &'a BenchSpec,
        instances: &[BaseUrl],
        model: String,
        workload: Workload,
        longest: usize,
        http: Http,
    ) -> Self {
        let target = |base: &BaseUrl| {
            Arc::new(Target {
                http: http.clone(),
                base: base.clone(),
                model: model.clone(),
                answered_within: spec.answered_within,
            })
        };
        Self {
            targets: instances.iter().map(target).collect(),
            bar: progress(workload.requests() as u64, "requests"),
            report: Report::new(instances.iter().map(BaseUrl::port)),
            workload,
            longest,
            rng: Rng::with_seed(spec.seed),
            turn: 0,
            in_flight: JoinSet::new(),
            spec,
        }
    }

    async fn send_all(mut self) -> Report {
        let began = Instant::now();
        let mut arrival = began;
        loop {
            let room = self.in_flight.len() < self.spec.concurrency;
            let next = if room {
                self.workload.next_turn()
            } else {
                None
            };
            if let Some(conversation) = next {
                if let Some(rate) = self.spec.rate {
                    arrival += distance(&mut self.rng, rate);
                    self.gather_until(arrival).await;
                }
                self.send(conversation);
                continue;
            }
            match self.in_flight.join_next().await {
                Some(ended) => self.gather(ended),
                None => break,
            }
        }
        self.bar.finish_and_clear();
        self.report.seconds = began.elapsed().as_secs_f64();
        self.report
    }

    /// Takes answers until the next request is due.
    async fn gather_until(&mut self, due: Instant) {
        loop {
            tokio::select! {
                biased;
                () = sleep_until(due) => return,
                Some(ended) = self.in_flight.join_next() => self.gather(ended),
            }
        }
    }

    fn send(&mut self, mut conversation: Conversation) {
        let Some(prompt) = self.workload.ask(&mut conversation, self.longest) else {
            return;
        };
        let instance = self.route(&conversation);
        let traffic = &mut self.report.instances[instance];
        traffic.requests += 1;
        self.report.cut += u64::from(prompt.cut);
        let target = self.targets[instance].clone();
        self.in_flight.spawn(async move {
            let answer = target.ask(&prompt).await;
            Outcome {
                instance,
                conversation,
                answer,
            }
        });
    }

    fn route(&mut self, conversation: &Conversation) -> usize {
        let count = self.targets.len();
        match self.spec.routing {
            Routing::RoundRobin => {
                self.turn += 1;
                (self.turn - 1) % count
            }
            Routing::Random => self.rng.usize(..count),
            // Less than the count of instances.
            Routing::Hash => (conversation.affinity % count as u64) as usize,
        }
    }

    fn gather(&mut self, ended: Result<Outcome, tokio::task::JoinError>) {
        let ended = match ended {
            Ok(ended) => ended,
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        };
        let port = self.targets[ended.instance].base.port();
        let traffic = &mut self.report.instances[ended.instance];
        let conversation = ended.conversation;
        let lost = match ended.answer {
            Ok(answer) => {
                traffic.add(&answer);
                self.workload.answered(conversation, Some(&answer.tokens))
            }
            Err(failure) => {
                traffic.failed += 1;
                self.report.add_failure(port, &failure);
                self.workload.answered(conversation, None)
            }
        };
        self.report.not_asked += lost as u64;
        self.bar.inc(1 + lost as u64);
        self.bar.set_message(self.report.failure_note());
    }
}

/// A random time between two requests of which `rate` come in a second.
fn distance(rng: &mut Rng, rate: f64) -> Duration {
    let seconds = -(1.0 - rng.f64()).ln() / rate;
    Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX / 1024)
}

/// `part` of `whole` for people.
fn share(part: f64, whole: f64) -> String {
    if whole > 0.0 {
        percent(part / whole)
    } else {
        "-".to_owned()
    }
}
