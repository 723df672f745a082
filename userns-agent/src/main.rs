//! The binary: reads the command line, runs the library, turns errors into exit codes.

use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode as Status;

use tracing_subscriber::EnvFilter;
use userns_agent::cli::{self, Command, ExitCode, PsOutput};
use userns_agent::config::Config;
use userns_agent::{app, docs, kernel, ps};

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
            Ok(loaded) => run(loaded.config).into(),
            Err(error) => fail(&error, ExitCode::from(&error)),
        },
        Command::Ps(arguments) => match arguments.settings.load() {
            Ok(loaded) => list(&loaded.config, arguments.output),
            Err(error) => fail(&error, ExitCode::from(&error)),
        },
        Command::CheckConfig(settings) => match settings.load() {
            Ok(loaded) => say(&loaded.show()),
            Err(error) => fail(&error, ExitCode::from(&error)),
        },
        Command::Version => say(&cli::version(kernel::object::embedded())),
        Command::Docs { dir } => match docs::generate(&dir) {
            Ok(()) => ExitCode::Ok.into(),
            Err(error) => fail(&error, ExitCode::CannotCreate),
        },
    }
}

fn run(config: Config) -> ExitCode {
    let filter = EnvFilter::new(config.log_level.name());
    let log =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false);
    log.with_ansi(std::io::stderr().is_terminal()).init();
    // one thread for the loop, one for what blocks: the agent shares its node
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let result = match runtime {
        Ok(runtime) => runtime.block_on(app::run(config)),
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

fn list(config: &Config, output: PsOutput) -> Status {
    match ps::run(config, output, &mut std::io::stdout().lock()) {
        Ok(outcome) => {
            for note in &outcome.notes {
                let _ = writeln!(std::io::stderr(), "userns-agent: {note}");
            }
            outcome.code.into()
        }
        Err(error) => fail(&error, ExitCode::from(&error)),
    }
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
