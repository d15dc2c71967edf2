//! `pointsman controller`: the operator.

use std::io::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Context as _;
use clap::ValueEnum as _;
use envoy_gateway::{Endpoints, ExtensionServer, Known, Setting};
use operator::install::{self, Installation};
use operator::{Client, Election, GatewaySource, Pickers, Settings};
use serde_json::json;
use telemetry::ControllerMetrics;
use telemetry::admin::{self, Subject};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::cli::{Controller, EppMode, LogFormat, Whose};
use crate::listen;
use crate::logging::LogControl;
use crate::shutdown::Signals;

const LEASE: &str = "pointsman-controller";
/// How many controllers a printed installation holds.
const REPLICAS: u8 = 2;
/// A whole translation, as `maxMessageSize` of Envoy Gateway's extension manager has it: about 1.1 KB a route.
const MESSAGE_BYTES_MAX: usize = 64 << 20;
/// Envoy Gateway's and those of its Envoys.
const CONNECTIONS_MAX: usize = 1024;
const CONNECTION_WINDOW_BYTES: u32 = 256 << 10;

/// The controller as the admin door shows it.
struct Program {
    standing: watch::Receiver<Standing>,
    /// Whether Envoy Gateway can be answered.
    answers: watch::Receiver<bool>,
    log: LogControl,
}

/// What this controller does now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    /// Another one leads.
    Waits,
    /// It leads, and has not seen everything yet.
    Lists,
    /// It leads.
    Leads,
}

/// Prints the manifests of an installation with these flags.
pub(crate) fn install(flags: &Controller) -> anyhow::Result<()> {
    let installation = Installation {
        namespace: install::NAMESPACE.to_owned(),
        options: flags.made.options(),
        replicas: REPLICAS.into(),
        shared_picker: flags.epp_mode == EppMode::Shared,
        arguments: arguments(flags),
    };
    let text = install::to_yaml(&installation.manifests())?;
    std::io::stdout().lock().write_all(text.as_bytes()).context("stdout")
}

/// The flags that an installation does not set by itself: those that say how pickers are made, and what is logged.
fn arguments(flags: &Controller) -> Vec<String> {
    let word = |value: Option<clap::builder::PossibleValue>| {
        value.map(|value| value.get_name().to_owned()).unwrap_or_default()
    };
    let mut arguments = vec![
        format!("--pickers={}", word(flags.pickers.to_possible_value())),
        format!("--epp-mode={}", word(flags.epp_mode.to_possible_value())),
        format!("--log={}", flags.logging.log),
    ];
    arguments.extend(flags.made.allow_overlay.iter().map(|path| format!("--allow-overlay={path}")));
    if flags.logging.log_format == LogFormat::Json {
        arguments.push("--log-format=json".to_owned());
    }
    arguments
}

/// Runs until SIGTERM or ctrl-c. Nothing is to be drained: what it made stays, and the next one goes on from there.
pub(crate) async fn run(flags: &Controller, log: LogControl) -> anyhow::Result<()> {
    let client = operator::connect(flags.kubeconfig.as_deref()).await?;
    let listener = listen::bind(SocketAddr::from((flags.bind, flags.metrics_port)), "--metrics-port", false)?;
    let extension_listener = bind_extension(flags)?;
    let (address, extension_address) = (listener.local_addr()?, extension_listener.local_addr()?);
    let mut signals = Signals::listen()?;
    let settings = Settings {
        options: flags.made.options(),
        pickers: match flags.pickers {
            Whose::Auto => Pickers::Auto,
            Whose::Managed => Pickers::Managed,
            Whose::SelfHosted => Pickers::SelfHosted,
        },
        shared_picker: flags.epp_mode == EppMode::Shared,
        allow_overlay: flags.made.allow_overlay.clone(),
    };
    let (tell_standing, standing) = watch::channel(Standing::Waits);
    let metrics = Arc::new(ControllerMetrics::default());
    let page = Arc::clone(&metrics);
    let (tell_answers, answers) = watch::channel(false);
    let program = Program { standing, answers: answers.clone(), log };
    let admin = admin::serve(listener, page, Arc::new(program), std::future::pending());
    let source = GatewaySource::new(&client, settings.pickers, &settings.options.gateway_namespace);
    let discovery = flags.discovery_address.clone();
    let discovery =
        discovery.unwrap_or_else(|| (install::discovery_host(install::NAMESPACE), extension_address.port()));
    let setting = Setting { discovery, pickers_change: settings.pickers == Pickers::Auto };
    let (tell_known, known) = watch::channel(Arc::new(Known::default()));
    let server = (extension_listener, setting, known.clone());
    let extension = extension(source, server, tell_known, tell_answers, answers);
    let mut stdout = std::io::stdout();
    writeln!(stdout, "ready metrics={address} extension={extension_address}")?;
    stdout.flush()?;
    let mut election = flags.leader_elect.then(|| {
        let namespace = &flags.made.gateway_namespace;
        Election::new(client.clone(), namespace, LEASE, identity())
    });
    tokio::select! {
        signal = signals.next() => tracing::info!(signal, "stopping: pickers go on"),
        () = lead(client, &settings, &known, &metrics, election.as_mut(), &tell_standing) => {}
        ended = admin => ended?,
        ended = extension => ended?,
    }
    if let Some(election) = &mut election {
        election.release().await;
    }
    Ok(())
}

/// Listens for Envoy Gateway and its Envoys. Where nobody asked for a port a second controller on one machine takes another.
fn bind_extension(flags: &Controller) -> anyhow::Result<TcpListener> {
    let bind = |port| listen::bind(SocketAddr::from((flags.bind, port)), "--extension-port", false);
    match flags.extension_port {
        Some(port) => bind(port),
        None => bind(install::EXTENSION_PORT).or_else(|error| {
            tracing::warn!("{error:#}; a free one is taken, where Envoy Gateway does not look");
            bind(0)
        }),
    }
}

/// Answers Envoy Gateway and its Envoys, for ever, from when everything was listed once: until then they wait.
async fn extension(
    source: GatewaySource,
    (listener, setting, known): (TcpListener, Setting, watch::Receiver<Arc<Known>>),
    tell_known: watch::Sender<Arc<Known>>,
    tell_listed: watch::Sender<bool>,
    mut listed: watch::Receiver<bool>,
) -> std::io::Result<()> {
    let (tell_endpoints, endpoints) = watch::channel(Arc::new(Endpoints::new()));
    let server = ExtensionServer::new(setting, known, endpoints);
    // What is not taken yet of what others send waits in memory, at most so much of each connection.
    let settings = grpc::Settings {
        message_bytes_max: MESSAGE_BYTES_MAX,
        connections_max: CONNECTIONS_MAX,
        connection_window_bytes: CONNECTION_WINDOW_BYTES,
        stream_window_bytes: CONNECTION_WINDOW_BYTES,
        ..grpc::Settings::default()
    };
    let serve = async {
        // Whoever tells of it goes on for ever.
        let _ = listed.wait_for(|listed| *listed).await;
        let server = grpc::Server::new(Arc::new(server), settings, None);
        server.serve(listener, CancellationToken::new(), std::time::Duration::ZERO).await
    };
    tokio::select! {
        () = source.run(tell_known, tell_endpoints, tell_listed) => Ok(()),
        ended = serve => ended.map(drop),
    }
}

/// Works whenever this one leads, for ever.
async fn lead(
    client: Client,
    settings: &Settings,
    known: &watch::Receiver<Arc<Known>>,
    metrics: &Arc<ControllerMetrics>,
    mut election: Option<&mut Election>,
    standing: &watch::Sender<Standing>,
) {
    loop {
        if let Some(election) = &mut election {
            election.win().await;
        }
        standing.send_replace(Standing::Lists);
        metrics.leads.set(1);
        let controller =
            operator::Controller::new(client.clone(), settings.clone(), known.clone(), Arc::clone(metrics));
        let listed = || {
            standing.send_replace(Standing::Leads);
        };
        match &mut election {
            Some(election) => tokio::select! {
                () = controller.run(listed) => {}
                () = election.keep() => {}
            },
            None => controller.run(listed).await,
        }
        standing.send_replace(Standing::Waits);
        metrics.leads.set(0);
    }
}

/// What no other controller is called.
fn identity() -> String {
    let host = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok());
    format!("{}_{:08x}", host.unwrap_or_default(), director::random_seed() >> 32)
}

impl Subject for Program {
    fn ready(&self) -> Result<(), String> {
        // Who waits to lead is as ready as it will be.
        if *self.standing.borrow() == Standing::Lists || !*self.answers.borrow() {
            Err("not everything was listed yet".into())
        } else {
            Ok(())
        }
    }

    fn state(&self) -> serde_json::Value {
        json!({ "standing": format!("{:?}", *self.standing.borrow()).to_lowercase() })
    }

    fn log_level(&self) -> String {
        self.log.level()
    }

    fn set_log_level(&self, level: &str) -> Result<(), String> {
        self.log.set_level(level)
    }
}
