//! Hosts, ports and a count, as LMCache's proxy makes instances of them.

/// Instances, in order.
#[derive(Debug, PartialEq, Eq)]
pub struct Pairs {
    pub all: Vec<(String, u16)>,
    /// One host and one port, counted up.
    pub counted: bool,
}

/// The error is the sentence to show.
pub fn pair(hosts: &[String], ports: &[u16], count: usize) -> Result<Pairs, String> {
    let all = match (hosts, ports) {
        ([host], [first]) => {
            let last = usize::from(*first) + count.saturating_sub(1);
            if count == 0 || last > usize::from(u16::MAX) {
                return Err(format!("{count} instances from port {first} on cannot be"));
            }
            let ports = *first..=last as u16;
            return Ok(Pairs {
                all: ports.map(|port| (host.clone(), port)).collect(),
                counted: true,
            });
        }
        ([host], ports) => ports.iter().map(|port| (host.clone(), *port)).collect(),
        (hosts, [port]) => hosts.iter().map(|host| (host.clone(), *port)).collect(),
        (hosts, ports) if hosts.len() == ports.len() => {
            hosts.iter().cloned().zip(ports.iter().copied()).collect()
        }
        (hosts, ports) => {
            return Err(format!(
                "{} hosts and {} ports cannot be paired: give one of either, or as many of both",
                hosts.len(),
                ports.len()
            ));
        }
    };
    Ok(Pairs {
        all,
        counted: false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(hosts: &str, ports: &[u16], count: usize) -> Result<String, String> {
        let hosts: Vec<String> = hosts.split(',').map(Into::into).collect();
        let pairs = pair(&hosts, ports, count)?;
        let shown: Vec<String> = pairs.all.iter().map(|(h, p)| format!("{h}:{p}")).collect();
        Ok(format!("{} {}", shown.join(" "), pairs.counted))
    }

    #[test]
    fn hosts_and_ports_are_paired_as_the_original_pairs_them() {
        assert_eq!(of("a", &[1], 3).unwrap(), "a:1 a:2 a:3 true");
        assert_eq!(of("a", &[1, 5], 3).unwrap(), "a:1 a:5 false");
        assert_eq!(of("a,b", &[1], 3).unwrap(), "a:1 b:1 false");
        assert_eq!(of("a,b", &[1, 2], 3).unwrap(), "a:1 b:2 false");
        assert!(
            of("a,b", &[1, 2, 3], 1)
                .unwrap_err()
                .contains("cannot be paired")
        );
        assert!(of("a", &[65_535], 2).is_err() && of("a", &[1], 0).is_err());
    }
}
