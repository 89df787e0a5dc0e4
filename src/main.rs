use std::process::ExitCode;

fn main() -> ExitCode {
    if let Some(code) = dlmi::backend::on_start() {
        return code;
    }
    ExitCode::SUCCESS
}
