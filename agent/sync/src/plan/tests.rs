use super::*;
use proptest::prelude::*;

const SECOND: Duration = Duration::from_secs(1);

fn pod(name: &str, policy: &str, pull: &str) -> Pod {
    let text = format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec: {{restartPolicy: {policy}, containers: [{{name: c, \
         image: i:1, imagePullPolicy: {pull}}}]}}\n"
    );
    crate::manifest::parse(text.as_bytes()).unwrap().remove(0)
}

fn desired(uid: &str, digest: Option<&str>) -> Desired {
    Desired {
        uid: uid.into(),
        pod: pod("p", "Always", "IfNotPresent"),
        digest: digest.map(str::to_owned),
    }
}

fn slot(uid: &str, digest: Option<&str>) -> Slot {
    Slot {
        desired: desired(uid, digest),
        previous: None,
    }
}

fn container(id: &str, uid: &str, attempt: u32, state: State) -> Container {
    Container {
        id: id.into(),
        key: "default/p".into(),
        uid: uid.into(),
        attempt,
        crashes: attempt,
        state,
        kill_at: None,
        image: "d1".into(),
        detail: Detail::default(),
    }
}

fn exited(at: u64, ran: u64, code: i64) -> State {
    State::Exited {
        at: SECOND * at as u32,
        ran: SECOND * ran as u32,
        code,
    }
}

fn board(containers: &[Container]) -> Observed {
    Observed {
        containers: containers.to_vec(),
        images: BTreeMap::from([("d1".into(), "d1".into()), ("d2".into(), "d2".into())]),
        ..Observed::default()
    }
}

/// The plan in short, for tables.
fn short(plan: &Plan) -> String {
    let mut words: Vec<String> = plan
        .actions
        .iter()
        .map(|action| match action {
            Action::Pin { uid, digest } => format!("pin {uid} {digest}"),
            Action::Fetch { uid } => format!("fetch {uid}"),
            Action::Create {
                uid,
                digest,
                attempt,
                crashes,
            } => format!("create {uid} {digest} {attempt}/{crashes}"),
            Action::Start { id } => format!("start {id}"),
            Action::Terminate { id } => format!("terminate {id}"),
            Action::Kill { id } => format!("kill {id}"),
            Action::Remove { id } => format!("remove {id}"),
            Action::Forget { key } => format!("forget {key}"),
            Action::Finish { uid } => format!("finish {uid}"),
        })
        .collect();
    words.extend(plan.wake.map(|wake| format!("wake {}", wake.as_secs())));
    words.join(", ")
}

#[test]
fn one_pod_step_by_step() {
    use State::{Created, Running};
    let now = SECOND * 1000;
    for (name, slots, observed, expected) in [
        ("nothing", vec![], board(&[]), ""),
        ("no image", vec![slot("a", None)], board(&[]), "fetch a"),
        (
            "being fetched",
            vec![slot("a", None)],
            Observed {
                fetching: Some("a".into()),
                ..board(&[])
            },
            "",
        ),
        (
            "the name is in the store",
            vec![slot("a", None)],
            Observed {
                images: BTreeMap::from([("i:1".into(), "d1".into())]),
                ..board(&[])
            },
            "pin a d1",
        ),
        (
            "image here",
            vec![slot("a", Some("d1"))],
            board(&[]),
            "create a d1 0/0",
        ),
        (
            "pinned image gone",
            vec![slot("a", Some("d9"))],
            board(&[]),
            "fetch a",
        ),
        (
            "created",
            vec![slot("a", Some("d1"))],
            board(&[container("x", "a", 0, Created)]),
            "start x",
        ),
        (
            "running",
            vec![slot("a", Some("d1"))],
            board(&[container("x", "a", 0, Running)]),
            "",
        ),
        (
            "first exit: again at once",
            vec![slot("a", Some("d1"))],
            board(&[container("x", "a", 0, exited(1000, 1, 1))]),
            "create a d1 1/1",
        ),
        (
            "second exit: 10 s",
            vec![slot("a", Some("d1"))],
            board(&[container("x", "a", 1, exited(999, 1, 1))]),
            "wake 1009",
        ),
        (
            "second exit, waited; the dead predecessor goes",
            vec![slot("a", Some("d1"))],
            board(&[
                container("x", "a", 1, exited(990, 1, 1)),
                container("w", "a", 0, exited(900, 1, 1)),
            ]),
            "create a d1 2/2",
        ),
        (
            "three dead: one is kept",
            vec![slot("a", Some("d1"))],
            board(&[
                container("x", "a", 2, Running),
                container("w", "a", 1, exited(900, 1, 1)),
                container("v", "a", 0, exited(800, 1, 1)),
            ]),
            "remove v",
        ),
        (
            "the tenth exit: five minutes",
            vec![slot("a", Some("d1"))],
            board(&[container("x", "a", 9, exited(1000, 1, 1))]),
            "wake 1300",
        ),
        (
            "ran for ten minutes: counted from the start again",
            vec![slot("a", Some("d1"))],
            board(&[container("x", "a", 9, exited(1000, 600, 1))]),
            "create a d1 10/1",
        ),
        (
            "file gone, running",
            vec![],
            board(&[container("x", "a", 0, Running)]),
            "terminate x",
        ),
        (
            "file gone, stopping",
            vec![],
            board(&[Container {
                kill_at: Some(SECOND * 1010),
                ..container("x", "a", 0, Running)
            }]),
            "wake 1010",
        ),
        (
            "file gone, grace over",
            vec![],
            board(&[Container {
                kill_at: Some(SECOND * 1000),
                ..container("x", "a", 0, Running)
            }]),
            "kill x",
        ),
        (
            "file gone, exited",
            vec![],
            board(&[container("x", "a", 0, exited(1, 1, 0))]),
            "remove x",
        ),
    ] {
        assert_eq!(short(&plan(&slots, &observed, now)), expected, "{name}");
    }
}

#[test]
fn an_update_makes_before_it_breaks() {
    use State::{Created, Running};
    let now = SECOND * 1000;
    let update = |digest: Option<&str>| {
        vec![Slot {
            desired: desired("b", digest),
            previous: Some(desired("a", Some("d1"))),
        }]
    };
    let old = container("x", "a", 0, Running);
    let dead = container("x", "a", 0, exited(1000, 700, 1));
    for (name, slots, containers, expected) in [
        (
            "the old one runs while the new image is fetched",
            update(None),
            vec![old.clone()],
            "fetch b",
        ),
        (
            "it is even started again",
            update(None),
            vec![dead.clone()],
            "create a d1 1/1, fetch b",
        ),
        (
            "the new container is made first",
            update(Some("d2")),
            vec![old.clone()],
            "create b d2 0/0",
        ),
        (
            "then the old one is stopped",
            update(Some("d2")),
            vec![old.clone(), container("y", "b", 0, Created)],
            "terminate x",
        ),
        (
            "and the new one started before the old one is removed",
            update(Some("d2")),
            vec![dead.clone(), container("y", "b", 0, Created)],
            "start y, remove x",
        ),
        (
            "the old one is forgotten once the new one runs",
            update(Some("d2")),
            vec![container("y", "b", 0, Running)],
            "forget default/p",
        ),
        (
            "back to the old one before the switch",
            vec![slot("a", Some("d1"))],
            vec![old.clone(), container("y", "b", 0, Created)],
            "remove y",
        ),
        (
            "nothing known of the old one",
            vec![slot("b", None)],
            vec![old.clone()],
            "fetch b",
        ),
        (
            "a boot in the middle of an update",
            update(None),
            vec![],
            "create a d1 0/0, fetch b",
        ),
    ] {
        assert_eq!(short(&plan(&slots, &board(&containers), now)), expected, "{name}");
    }
}

#[test]
fn failures_wait_and_do_not_block_others() {
    let now = SECOND * 1000;
    let trouble = |retry_at| Trouble {
        step: Step::Fetch,
        failures: 1,
        retry_at,
        message: "no route".into(),
    };
    let mut observed = board(&[]);
    observed.troubles.insert("a".into(), trouble(Some(SECOND * 1010)));
    let mut other = slot("b", None);
    other.desired.pod = pod("q", "Always", "IfNotPresent");
    let slots = [slot("a", None), other];
    assert_eq!(short(&plan(&slots, &observed, now)), "fetch b, wake 1010");
    assert_eq!(short(&plan(&slots, &observed, SECOND * 1010)), "fetch a");
    observed.troubles.insert("a".into(), trouble(None));
    assert_eq!(short(&plan(&slots[..1], &observed, now)), "");
}

#[test]
fn policies() {
    let now = SECOND * 1000;
    for (policy, code, expected) in [
        ("Always", 0, "create a d1 1/1"),
        ("OnFailure", 0, "finish a"),
        ("OnFailure", 3, "create a d1 1/1"),
        ("Never", 3, "finish a"),
    ] {
        let mut slot = slot("a", Some("d1"));
        slot.desired.pod = pod("p", policy, "IfNotPresent");
        let mut observed = board(&[container("x", "a", 0, exited(1000, 1, code))]);
        assert_eq!(
            short(&plan(std::slice::from_ref(&slot), &observed, now)),
            expected,
            "{policy} {code}"
        );
        observed.finished.insert("a".into());
        assert_eq!(
            short(&plan(std::slice::from_ref(&slot), &observed, now)),
            "",
            "{policy} {code}, finished"
        );
        observed.containers.clear();
        assert_eq!(
            short(&plan(&[slot], &observed, now)),
            "",
            "{policy} {code}, finished and removed"
        );
    }
    for (pull, images, expected) in [
        ("Always", &["i:1"][..], "fetch a"),
        ("IfNotPresent", &["i:1"], "pin a d1"),
        ("Never", &["i:1"], "pin a d1"),
        ("Never", &[], ""),
    ] {
        let mut slot = slot("a", None);
        slot.desired.pod = pod("p", "Always", pull);
        let images = images
            .iter()
            .map(|name| ((*name).to_owned(), "d1".to_owned()))
            .collect();
        let observed = Observed {
            images,
            ..Observed::default()
        };
        assert_eq!(
            short(&plan(&[slot], &observed, now)),
            expected,
            "{pull} {images:?}",
            images = observed.images
        );
    }
}

/// A board that does what a plan says, and on which things go wrong.
#[derive(Default)]
struct World {
    slots: BTreeMap<String, Slot>,
    observed: Observed,
    now: Moment,
    made: u32,
}

#[derive(Clone, Debug)]
enum Event {
    Change { pod: usize, version: u8 },
    Delete { pod: usize },
    Exit { index: usize, code: i64 },
    FetchDone { works: bool },
    CreateFails,
    Pass { seconds: u32 },
    Steal { index: usize },
    PersonStarts { index: usize },
    MonitorsEnd,
    Step,
}

const NAMES: [&str; 2] = ["p", "q"];

impl World {
    fn change(&mut self, name: &str, version: u8) {
        let new = Desired {
            uid: format!("{name}{version}"),
            pod: pod(
                name,
                "Always",
                if version.is_multiple_of(2) {
                    "Always"
                } else {
                    "IfNotPresent"
                },
            ),
            digest: None,
        };
        let key = new.pod.key();
        let slot = match self.slots.remove(&key) {
            Some(old) if old.desired.uid == new.uid => old,
            Some(old) => match old.previous {
                Some(previous) if previous.uid == new.uid => Slot {
                    desired: previous,
                    previous: None,
                },
                Some(previous) => Slot {
                    desired: new,
                    previous: Some(previous),
                },
                None => Slot {
                    desired: new,
                    previous: Some(old.desired),
                },
            },
            None => Slot {
                desired: new,
                previous: None,
            },
        };
        self.slots.insert(key, slot);
    }

    fn desired(&mut self, uid: &str) -> Option<&mut Desired> {
        self.slots
            .values_mut()
            .flat_map(|slot| std::iter::once(&mut slot.desired).chain(slot.previous.as_mut()))
            .find(|desired| desired.uid == uid)
    }

    fn container(&mut self, id: &str) -> &mut Container {
        self.observed
            .containers
            .iter_mut()
            .find(|container| container.id == id)
            .expect("the plan names what exists")
    }

    fn fail(&mut self, uid: &str, step: Step) {
        let failures = self
            .observed
            .troubles
            .get(uid)
            .map_or(0, |trouble| trouble.failures)
            + 1;
        let retry_at = Some(self.now + FETCH.delay(failures));
        self.observed.troubles.insert(
            uid.into(),
            Trouble {
                step,
                failures,
                retry_at,
                message: "x".into(),
            },
        );
    }

    /// Plans and does it; whether there was anything to do.
    fn step(&mut self, create_fails: bool) -> bool {
        let slots: Vec<Slot> = self.slots.values().cloned().collect();
        let plan = plan(&slots, &self.observed, self.now);
        for action in plan.actions.clone() {
            match action {
                Action::Pin { uid, digest } => {
                    self.desired(&uid).expect("a desired pod").digest = Some(digest)
                }
                Action::Fetch { uid } => {
                    assert!(self.observed.fetching.is_none(), "two fetches at once");
                    self.observed.fetching = Some(uid);
                }
                Action::Create { uid, .. } if create_fails => self.fail(&uid, Step::Create),
                Action::Create {
                    uid,
                    digest,
                    attempt,
                    crashes,
                } => {
                    let key = self.desired(&uid).expect("a desired pod").pod.key();
                    self.made += 1;
                    self.observed.troubles.remove(&uid);
                    self.observed.containers.push(Container {
                        id: self.made.to_string(),
                        key,
                        uid,
                        attempt,
                        crashes,
                        state: State::Created,
                        kill_at: None,
                        image: digest,
                        detail: Detail::default(),
                    });
                }
                Action::Start { id } => {
                    let key = self.container(&id).key.clone();
                    let running = |c: &&Container| c.key == key && c.state.lives();
                    assert_eq!(
                        self.observed.containers.iter().filter(running).count(),
                        0,
                        "two of {key} would run"
                    );
                    let container = self.container(&id);
                    assert_eq!(container.state, State::Created);
                    container.state = State::Running;
                }
                Action::Terminate { id } => {
                    let kill_at = self.now + SECOND * 30;
                    self.container(&id).kill_at = Some(kill_at);
                }
                Action::Kill { id } => {
                    let at = self.now;
                    self.container(&id).state = State::Exited {
                        at,
                        ran: SECOND,
                        code: 137,
                    };
                }
                Action::Remove { id } => {
                    assert!(!self.container(&id).state.lives(), "removes what runs");
                    self.observed.containers.retain(|container| container.id != id);
                }
                Action::Forget { key } => self.slots.get_mut(&key).expect("a slot").previous = None,
                Action::Finish { .. } => panic!("policy is Always"),
            }
        }
        if let (true, Some(wake)) = (plan.actions.is_empty(), plan.wake) {
            assert!(wake > self.now, "wakes in the past: {plan:?}");
        }
        !plan.actions.is_empty()
    }

    fn fetched(&mut self, works: bool) {
        let Some(uid) = self.observed.fetching.take() else {
            return;
        };
        if !works {
            self.fail(&uid, Step::Fetch);
            return;
        }
        self.observed.troubles.remove(&uid);
        let digest = format!("sha-{uid}");
        self.observed.images.insert(digest.clone(), digest.clone());
        if let Some(desired) = self.desired(&uid) {
            desired.digest = Some(digest);
        }
    }

    /// What has ended ends altogether; whether there was such a container.
    fn monitors_end(&mut self) -> bool {
        let state = State::Exited {
            at: self.now,
            ran: SECOND,
            code: 137,
        };
        let ending = self
            .observed
            .containers
            .iter_mut()
            .filter(|container| container.state == State::Ending);
        ending.map(|container| container.state = state).count() > 0
    }

    fn apply(&mut self, event: &Event) {
        let pick = |index: usize, len: usize| if len == 0 { None } else { Some(index % len) };
        match *event {
            Event::Change { pod, version } => self.change(NAMES[pod], version),
            Event::Delete { pod } => {
                self.slots.remove(&format!("default/{}", NAMES[pod]));
            }
            Event::Exit { index, code } => {
                let now = self.now;
                let running = |c: &&mut Container| c.state == State::Running;
                if let Some(container) = self.observed.containers.iter_mut().filter(running).nth(index) {
                    // Seen before or after its monitor has ended, too.
                    container.state = match code {
                        0 => State::Ending,
                        code => State::Exited {
                            at: now,
                            ran: SECOND * 3,
                            code,
                        },
                    };
                }
            }
            Event::FetchDone { works } => self.fetched(works),
            Event::CreateFails => {
                self.step(true);
            }
            Event::Pass { seconds } => self.now += SECOND * seconds,
            Event::Steal { index } => {
                if let Some(at) = pick(index, self.observed.containers.len()) {
                    self.observed.containers.remove(at);
                }
            }
            Event::PersonStarts { index } => {
                // `wherry start` on a dead container of a pod: the one thing that may make two of them run.
                let at = pick(index, self.observed.containers.len());
                if let Some(container) = at.map(|at| &mut self.observed.containers[at]) {
                    container.state = State::Running;
                    container.kill_at = None;
                }
            }
            Event::MonitorsEnd => {
                self.monitors_end();
            }
            Event::Step => {
                self.step(false);
            }
        }
    }
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        2 => (0..2usize, 0..4u8).prop_map(|(pod, version)| Event::Change { pod, version }),
        1 => (0..2usize).prop_map(|pod| Event::Delete { pod }),
        3 => (0..3usize, 0..2i64).prop_map(|(index, code)| Event::Exit { index, code }),
        3 => any::<bool>().prop_map(|works| Event::FetchDone { works }),
        1 => Just(Event::CreateFails),
        2 => (0..400u32).prop_map(|seconds| Event::Pass { seconds }),
        1 => (0..4usize).prop_map(|index| Event::Steal { index }),
        1 => (0..4usize).prop_map(|index| Event::PersonStarts { index }),
        2 => Just(Event::MonitorsEnd),
        8 => Just(Event::Step),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever happens, the plan itself never starts a second container of a key (asserted in `World::step`), and
    /// once things stop going wrong, the board gets to what is desired and the plan is empty.
    #[test]
    fn always_safe_and_always_converges(events in prop::collection::vec(event(), 0..60)) {
        let mut world = World::default();
        for event in &events {
            world.apply(event);
        }
        let mut quiet = false;
        for _ in 0..200 {
            let acted = world.step(false);
            let fetching = world.observed.fetching.is_some();
            let acted = world.monitors_end() || acted;
            world.fetched(true);
            if !acted && !fetching {
                let slots: Vec<Slot> = world.slots.values().cloned().collect();
                match plan(&slots, &world.observed, world.now).wake {
                    Some(wake) => world.now = wake,
                    None => { quiet = true; break }
                }
            }
        }
        prop_assert!(quiet, "not quiet after 200 steps: {:?}", world.observed);
        for (key, slot) in &world.slots {
            let of_key: Vec<_> = world.observed.containers.iter().filter(|container| &container.key == key).collect();
            let running: Vec<_> = of_key.iter().filter(|container| container.state == State::Running).collect();
            prop_assert_eq!(running.len(), 1);
            prop_assert_eq!(&running[0].uid, &slot.desired.uid);
            prop_assert!(of_key.len() <= 2, "left behind: {:?}", of_key);
            prop_assert!(slot.previous.is_none());
        }
        let wanted = |container: &Container| world.slots.contains_key(&container.key);
        prop_assert!(world.observed.containers.iter().all(wanted), "left behind: {:?}", world.observed.containers);
    }
}
