//! scratch
use userns_agent::kernel::*;
fn main() {
    let k = features::probe().unwrap();
    let s = features::settings(&k, 0, std::time::Duration::from_secs(2));
    let p = plan::plan(&k.features);
    let (mut l, _r) = load::load(object::bytes(), &s, &p).unwrap();
    for p in &l.probes {
        println!("{:?} {:?} {}", p.hook, p.mechanism, p.state.name());
        if let Some(r) = p.state.reason() {
            println!("   {}", &r[r.len().saturating_sub(3000)..]);
        }
    }
    for _ in 0..3 {
        let t = std::time::Instant::now();
        println!("{:?} {:?}", l.sweep(), t.elapsed());
    }
    std::thread::sleep(std::time::Duration::from_secs(2));
    println!("{:?}", l.counters());
}
