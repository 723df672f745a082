//! The binary: reads the command line, runs the library, turns errors into exit codes.

use std::io::{BufWriter, IsTerminal as _, Write as _};
use std::process::ExitCode as Status;
use std::time::Duration;

use tracing_subscriber::EnvFilter;
use userns_agent::cli::{
    self, Command, ExitCode, ExplainArgs, InspectArgs, PsArgs, RecordArgs, SimulateCommand,
};
use userns_agent::config::{Config, Loaded};
use userns_agent::{app, docs, explain, kernel, policy, ps, recording, simulate};

fn main() -> Status {
    let cli = match cli::parse(std::env::args_os()) {
        Ok(cli) => cli,
        Err(error) => {
            // the text is out or it is not: there is nobody left to tell
            let _ = error.print();
            return cli::exit_code(&error).into();
        }
    };
    match cli.command {
        Command::Run(settings) => match settings.load() {
            Ok(loaded) => run(loaded.config, None).into(),
            Err(error) => fail(&error, ExitCode::from(&error)),
        },
        Command::Record(arguments) => {
            let RecordArgs { file, duration, max_size, settings } = arguments;
            let options = recording::Options { path: file, max_bytes: max_size << 20 };
            match settings.load() {
                Ok(loaded) => run(loaded.config, Some(app::Recording { options, duration })).into(),
                Err(error) => fail(&error, ExitCode::from(&error)),
            }
        }
        Command::Replay(arguments) => {
            let (mut out, mut notes) = (BufWriter::new(std::io::stdout().lock()), std::io::stderr().lock());
            match recording::replay(&arguments.into(), &mut out, &mut notes) {
                Ok(()) => ExitCode::Ok.into(),
                Err(error) => fail(&error, ExitCode::from(&error)),
            }
        }
        Command::Ps(arguments) => match arguments.settings.load() {
            Ok(loaded) => list(&loaded.config, &arguments),
            Err(error) => fail(&error, ExitCode::from(&error)),
        },
        Command::Inspect(arguments) => match arguments.settings.load() {
            Ok(loaded) => {
                let (config, InspectArgs { pod, output, no_agent, .. }) = (loaded.config, &arguments);
                match ps::inspect(&config, pod, *output, *no_agent, &mut std::io::stdout().lock()) {
                    Ok(outcome) => note(&outcome),
                    Err(error) => fail(&error, ExitCode::from(&error)),
                }
            }
            Err(error) => fail(&error, ExitCode::from(&error)),
        },
        Command::Explain(arguments) => match arguments.settings.load() {
            Ok(loaded) => tell(&loaded.config, &arguments),
            Err(error) => fail(&error, ExitCode::from(&error)),
        },
        Command::Simulate { command } => match rehearse(command) {
            Ok(code) => code.into(),
            Err(error) => fail(&error, ExitCode::from(&error)),
        },
        Command::CheckConfig(settings) => match settings.load() {
            Ok(loaded) => check(&loaded),
            Err(error) => fail(&error, ExitCode::from(&error)),
        },
        Command::Version => say(&cli::version(kernel::object::embedded())),
        Command::Docs { dir } => match docs::generate(&dir) {
            Ok(()) => ExitCode::Ok.into(),
            Err(error) => fail(&error, ExitCode::CannotCreate),
        },
    }
}

/// Shows the configuration and, behind it, the rules.
fn check(loaded: &Loaded) -> Status {
    let rules = match &loaded.config.rules_file {
        Some(path) => policy::report::check(path, &loaded.config),
        None => Ok(String::new()),
    };
    match rules {
        Ok(rules) => say(&(loaded.show() + &rules)),
        Err(error) => fail(&error, ExitCode::from(&error)),
    }
}

fn run(config: Config, recording: Option<app::Recording>) -> ExitCode {
    let filter = EnvFilter::new(config.log_level.name());
    let log =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false);
    log.with_ansi(std::io::stderr().is_terminal()).init();
    // one thread for the loop, one for what blocks: the agent shares its node
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let result = match runtime {
        Ok(runtime) => runtime.block_on(app::run(config, recording)),
        Err(source) => Err(app::RunError::Os { what: "cannot start the runtime", source }),
    };
    match result {
        Ok(()) => ExitCode::Ok,
        Err(error) => {
            complain(&error);
            ExitCode::from(&error)
        }
    }
}

fn list(config: &Config, arguments: &PsArgs) -> Status {
    loop {
        // looked at first, so that the screen is not empty meanwhile
        let mut text = Vec::new();
        let outcome = match ps::run(config, arguments.output, arguments.no_agent, &mut text) {
            Ok(outcome) => outcome,
            Err(error) => return fail(&error, ExitCode::from(&error)),
        };
        let mut out = std::io::stdout().lock();
        let clear: &[u8] =
            if arguments.watch.is_some() && out.is_terminal() { b"\x1b[H\x1b[2J" } else { b"" };
        if let Err(error) =
            out.write_all(clear).and_then(|()| out.write_all(&text)).and_then(|()| out.flush())
        {
            return fail(&ps::PsError::Write(error), ExitCode::Io);
        }
        let status = note(&outcome);
        let Some(seconds) = arguments.watch else { return status };
        std::thread::sleep(Duration::from_secs(seconds));
    }
}

fn tell(config: &Config, arguments: &ExplainArgs) -> Status {
    let ExplainArgs { name, file, .. } = arguments;
    let (socket, out) = (config.socket.as_deref(), &mut std::io::stdout().lock());
    match explain::explain(name.as_deref(), file.as_deref(), socket, explain::width(), out) {
        Ok(()) => ExitCode::Ok.into(),
        Err(error) => fail(&error, ExitCode::from(&error)),
    }
}

fn rehearse(command: SimulateCommand) -> Result<ExitCode, simulate::SimulateError> {
    let mut out = std::io::stdout().lock();
    match command {
        SimulateCommand::List { output } => simulate::list(output, &mut out).map(|()| ExitCode::Ok),
        SimulateCommand::Run(arguments) => {
            let output = arguments.output;
            simulate::run(arguments.into(), output, &mut out)
        }
    }
}

fn note(outcome: &ps::Outcome) -> Status {
    for note in &outcome.notes {
        let _ = writeln!(std::io::stderr(), "userns-agent: {note}");
    }
    outcome.code.into()
}

fn fail(error: &dyn std::error::Error, code: ExitCode) -> Status {
    complain(error);
    code.into()
}

fn complain(error: &dyn std::error::Error) {
    // standard error is the last resort
    let _ = writeln!(std::io::stderr(), "userns-agent: {error}");
}

fn say(text: &str) -> Status {
    match std::io::stdout().write_all(text.as_bytes()) {
        Ok(()) => ExitCode::Ok.into(),
        Err(error) => fail(&error, ExitCode::Io),
    }
}
