use super::*;

const FULL: &str = r#"# a comment
apiVersion: v1
kind: Pod
metadata:
  name: iris
  namespace: edge
  creationTimestamp: null
  labels: {app: iris}
  annotations:
    note: "hello"
spec:
  restartPolicy: OnFailure
  terminationGracePeriodSeconds: 5
  volumes:
  - name: data
    emptyDir: {}
  - name: site
    hostPath: {path: /etc/hostname, type: File}
  containers:
  - name: server
    image: 127.0.0.1:5000/iris:1
    command: ["/iris"]
    args: [--model, $(MODEL)]
    env:
    - {name: MODEL, value: /model.bin}
    - name: DEBUG
      value: "1"
    ports:
    - containerPort: 8080
      hostPort: 18080
      hostIP: 127.0.0.1
      protocol: TCP
    volumeMounts:
    - {name: data, mountPath: /data}
    - {name: site, mountPath: /site, readOnly: true}
    securityContext:
      runAsUser: 1000
      readOnlyRootFilesystem: true
      allowPrivilegeEscalation: false
      capabilities: {drop: [ALL], add: [CAP_NET_BIND_SERVICE]}
status: {}
"#;

fn errors(text: &str) -> Vec<String> {
    parse(text.as_bytes())
        .unwrap_err()
        .iter()
        .map(Problem::to_string)
        .collect()
}

#[test]
fn a_full_pod_is_read() {
    let pods = parse(FULL.as_bytes()).unwrap();
    let [pod] = pods.as_slice() else {
        panic!("{pods:?}")
    };
    assert_eq!(pod.key(), "edge/iris");
    assert_eq!(pod.spec.restart_policy, RestartPolicy::OnFailure);
    let container = &pod.spec.containers[0];
    assert_eq!(container.image_pull_policy, PullPolicy::IfNotPresent);
    assert_eq!(container.expanded_command().1, ["--model", "/model.bin"]);
    assert_eq!(container.ports[0].host_port, Some(18080));
    assert_eq!(container.security_context.capabilities.add, ["NET_BIND_SERVICE"]);
    assert_eq!(pod.user(container).as_deref(), Some("1000"));
    assert_eq!(
        pod.spec.volumes[1].source,
        VolumeSource::HostPath {
            path: "/etc/hostname".into(),
            kind: HostPathType::File
        }
    );
}

#[test]
fn json_written_from_a_pod_reads_as_the_same_pod() {
    let pod = parse(FULL.as_bytes()).unwrap().remove(0);
    let json = serde_json::to_vec_pretty(&pod.to_json().unwrap()).unwrap();
    assert_eq!(parse(&json).unwrap(), [pod]);
}

#[test]
fn several_documents_and_empty_ones() {
    let one = "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {containers: [{name: c, image: i:1}]}\n";
    let two = one.replace("name: a", "name: b");
    let pods = parse(format!("---\n{one}---\n# nothing here\n---\n{two}").as_bytes()).unwrap();
    assert_eq!(
        pods.iter().map(Pod::key).collect::<Vec<_>>(),
        ["default/a", "default/b"]
    );
    assert_eq!(
        errors(&format!("{one}---\n{one}")),
        ["metadata.name: a second Pod named default/a, line 6"]
    );
    assert_eq!(parse(b"").unwrap(), []);
    assert_eq!(parse(b"# only a comment\n").unwrap(), []);
}

#[test]
fn mistakes_are_named_with_their_line() {
    for (from, to, expected) in [
        (
            "    image: 127",
            "    imge: 127",
            "spec.containers[0].image: missing, line 20",
        ),
        (
            "  restartPolicy: On",
            "  restartPolcy: On",
            "spec.restartPolcy: unknown field, line 12",
        ),
        (
            "  restartPolicy: OnFailure",
            "  initContainers: [{}]",
            "spec.initContainers: not supported yet, line 12",
        ),
        (
            "  restartPolicy: OnFailure",
            "  restartPolicy: Sometimes",
            "spec.restartPolicy: \"Sometimes\" is not one of \"Always\", \"OnFailure\", \"Never\", line 12",
        ),
        (
            "kind: Pod",
            "kind: Deployment",
            "kind: Deployment is not supported yet; write a Pod, line 3",
        ),
        ("kind: Pod", "", "kind: missing; write \"kind: Pod\", line 2"),
        (
            "apiVersion: v1",
            "apiVersion: v2",
            "apiVersion: a Pod has apiVersion v1, line 2",
        ),
        (
            "  name: iris",
            "  name: Iris_1",
            "metadata.name: \"Iris_1\" is not a DNS name (a-z, 0-9, \"-\" and \".\" inside, at most 253), line 5",
        ),
        (
            "      hostPort: 18080",
            "      hostPort: 70000",
            "spec.containers[0].ports[0].hostPort: 70000 is not between 1 and 65535, line 30",
        ),
        (
            "      protocol: TCP",
            "      protocol: UDP",
            "spec.containers[0].ports[0].protocol: \"UDP\" is not one of \"TCP\", line 32",
        ),
        (
            "      value: \"1\"",
            "      value: 1",
            "spec.containers[0].env[1].value: expected a string, got a number (put it in quotes), line 27",
        ),
        (
            "      value: \"1\"",
            "      valueFrom: {fieldRef: {fieldPath: x}}",
            "spec.containers[0].env[1].valueFrom: not supported yet, line 27",
        ),
        (
            "    - {name: data, mountPath: /data}",
            "    - {name: date, mountPath: /data}",
            "spec.containers[0].volumeMounts[0].name: there is no volume \"date\" in spec.volumes, line 34",
        ),
        (
            "mountPath: /site",
            "mountPath: ../site",
            "spec.containers[0].volumeMounts[1].mountPath: \"../site\" is not an absolute path without \"..\", line 35",
        ),
        (
            "    emptyDir: {}",
            "    secret: {secretName: x}",
            "spec.volumes[0].secret: not supported yet, line 16",
        ),
        (
            "    emptyDir: {}",
            "",
            "spec.volumes[0]: a volume has either emptyDir or hostPath, line 15",
        ),
        (
            "      allowPrivilegeEscalation: false",
            "      privileged: true",
            "spec.containers[0].securityContext.privileged: only false is supported: pods run without root, line 39",
        ),
        (
            "    command: [\"/iris\"]",
            "    resources: {limits: {nvidia.com/gpu: 1}}",
            "spec.containers[0].resources.limits.nvidia.com/gpu: not supported yet: cpu and memory are, line 22",
        ),
        (
            "    command: [\"/iris\"]",
            "    resources: {limits: {cpu: 1Q}}",
            "spec.containers[0].resources.limits.cpu: \"1Q\" is not a quantity (as 500m, 0.5, 128Mi), line 22",
        ),
        (
            "    command: [\"/iris\"]",
            "    resources: {limits: {memory: 1Mi}, requests: {memory: 2Mi}}",
            "spec.containers[0].resources.requests.memory: must be less than or equal to the memory limit, line 22",
        ),
        (
            "    command: [\"/iris\"]",
            "    resources: {requests: {cpu: true}}",
            "spec.containers[0].resources.requests.cpu: expected a quantity, got a boolean, line 22",
        ),
        (
            "    command: [\"/iris\"]",
            "    command: /iris",
            "spec.containers[0].command: expected a list, got a string, line 22",
        ),
        (
            "    image: 127.0.0.1:5000/iris:1",
            "    image: \"bad image\"",
            "spec.containers[0].image: \"bad image\" is not an image reference, line 21",
        ),
        ("status: {}", "- broken", ""),
    ] {
        let text = FULL.replacen(from, to, 1);
        assert_ne!(text, FULL, "{from:?} is not in the text");
        let found = errors(&text);
        if expected.is_empty() {
            assert_eq!(found.len(), 1, "{found:?}");
        } else {
            assert!(
                found.iter().any(|line| line == expected),
                "{to:?}: expected {expected:?} in {found:#?}"
            );
        }
    }
}

#[test]
fn several_mistakes_come_in_the_order_of_the_file() {
    let text = FULL
        .replace("metadata:", "metdata:")
        .replace("    command:", "    comand:");
    assert_eq!(
        errors(&text),
        [
            "metadata: missing, line 2",
            "metdata: unknown field, line 4",
            "spec.containers[0].comand: unknown field, line 22",
        ]
    );
}

#[test]
fn a_second_container_is_refused_with_its_line() {
    let text = FULL.replace("status: {}", "  - name: two\n    image: i:1\n");
    assert_eq!(
        errors(&text),
        ["spec.containers[1]: more than one container is not supported yet, line 41"]
    );
}

#[test]
fn the_number_of_problems_is_bounded() {
    let many: String = (0..1000).map(|n| format!("x{n}: 1\n")).collect();
    assert_eq!(errors(&format!("{many}{FULL}")).len(), MAX_PROBLEMS);
    assert_eq!(
        errors("just a string"),
        ["expected a mapping, got a string, line 1"]
    );
}

#[test]
fn pull_policy_defaults_follow_kubernetes() {
    for (image, policy) in [
        ("iris", PullPolicy::Always),
        ("host:5000/iris", PullPolicy::Always),
        ("iris:latest", PullPolicy::Always),
        ("iris:1", PullPolicy::IfNotPresent),
        ("host:5000/iris:1", PullPolicy::IfNotPresent),
        ("iris@sha256:00", PullPolicy::IfNotPresent),
    ] {
        assert_eq!(default_pull_policy(image), policy, "{image}");
    }
}
