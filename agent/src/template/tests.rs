use serde_json::json;

use super::*;

fn check(template: &str) -> Result<String, String> {
    let value = json!({
        "Name": "iris", "Size": 12, "Empty": "", "On": true, "Tags": ["a", "b"], "None": null,
        "Config": {"Env": ["A=1", "B=2"], "Labels": {"b.c": "2", "a": "1"}},
        "List": [{"X": 1}, {"X": 2}],
    });
    Template::parse(template)?.render(&value)
}

#[test]
fn what_people_write() {
    for (template, want) in [
        ("", ""),
        ("plain {", "plain {"),
        ("{{.Name}}", "iris"),
        ("{{ .Name }}:{{.Size}}!", "iris:12!"),
        ("{{json .Tags}}", "[\"a\",\"b\"]"),
        ("{{json .Config.Env}} {{len .Tags}}", "[\"A=1\",\"B=2\"] 2"),
        ("{{.Tags}} {{.Config.Labels}}", "[a b] map[a:1 b.c:2]"),
        ("{{range .Tags}}<{{.}}>{{end}}", "<a><b>"),
        ("{{range $i, $t := .Tags}}{{$i}}={{$t}} {{end}}", "0=a 1=b "),
        (
            "{{range $k, $v := .Config.Labels}}{{$k}}={{$v}};{{end}}",
            "a=1;b.c=2;",
        ),
        ("{{range .List}}{{.X}}{{$.Name}} {{end}}", "1iris 2iris "),
        ("{{range .Empty}}x{{else}}nothing{{end}}", ""),
        ("{{range .None}}x{{else}}nothing{{end}}", "nothing"),
        ("{{if .On}}yes{{else}}no{{end}}", "yes"),
        ("{{if .Empty}}yes{{else if .On}}on{{else}}no{{end}}", "on"),
        ("{{with .Config}}{{len .Env}}{{end}}", "2"),
        ("{{index .Config.Labels \"b.c\"}} {{index .Tags 1}}", "2 b"),
        ("{{index .List 1 \"X\"}} {{(index .List 0).X}}", "2 1"),
        (
            "{{.Name | upper}} {{lower \"AB\"}} {{title .Name}}",
            "IRIS ab Iris",
        ),
        (
            "{{join .Tags \", \"}} {{split \"a-b\" \"-\" | json}}",
            "a, b [\"a\",\"b\"]",
        ),
        (
            "{{printf \"%-6s|%3d|%q|%%\" .Name .Size .Name}}",
            "iris  | 12|\"iris\"|%",
        ),
        ("{{println .Name .Size}}", "iris 12\n"),
        ("{{if eq .Name \"iris\"}}{{if not .Empty}}ok{{end}}{{end}}", "ok"),
        (
            "{{if and .On (gt .Size 3)}}big{{end}}{{or .Empty .Name}}",
            "bigiris",
        ),
        ("{{$x := .Name}}{{$x}} {{truncate $x 2}}", "iris ir"),
        ("a {{- .Name -}} b", "airisb"),
        ("{{/* nothing */}}x", "x"),
        (
            "{{.Config.Nothing}} {{.Config.Nothing.More}}",
            "<no value> <no value>",
        ),
        ("{{\"}}\"}}{{`raw \\n`}}", "}}raw \\n"),
    ] {
        if template == "{{range .Empty}}x{{else}}nothing{{end}}" {
            assert!(check(template).is_err(), "Go does not range over a string here");
            continue;
        }
        assert_eq!(check(template).as_deref(), Ok(want), "{template}");
    }
}

#[test]
fn mistakes_are_told() {
    for (template, part) in [
        ("{{.Nmae}}", "no field \"Nmae\"; there are Name, Size"),
        ("{{.Name.X}}", "can't evaluate field \"X\""),
        ("{{", "{{ without }}"),
        ("{{}}", "nothing where a value should be"),
        ("{{.Name |}}", "nothing where a value should be"),
        ("{{if .On}}x", "{{if}} without an end"),
        ("{{end}}", "{{end}} without a beginning"),
        ("{{else}}", "{{else}} without an if"),
        ("{{if .On}}{{else}}{{else}}{{end}}", "{{else}} without an end"),
        ("{{frob .Name}}", "function \"frob\" is not defined"),
        ("{{.Name 1}}", "only a function takes arguments"),
        ("{{(.Name}}", "a parenthesis without an end"),
        ("{{.Name)}}", "out of place"),
        ("{{index .Tags 7}}", "index out of range"),
        ("{{\"a}}", "without"),
        ("{{..Name}}", "is not a field"),
        ("{{$y}}", "undefined variable"),
        ("{{join .Name \",\"}}", "join: not a list"),
        ("{{html .Name}}", "is not supported"),
    ] {
        let error = check(template).unwrap_err();
        assert!(error.contains(part), "{template}: {error}");
    }
    let deep = "{{if .On}}".repeat(100) + &"{{end}}".repeat(100);
    assert!(check(&deep).unwrap_err().contains("too deep"));
    let deep = format!("{{{{{}.Name{}}}}}", "(".repeat(100), ")".repeat(100));
    assert!(check(&deep).unwrap_err().contains("too deep"));
}

#[test]
fn loops_in_loops_end() {
    let list: Vec<u64> = (0..2000).collect();
    let template =
        Template::parse("{{range $}}{{range $}}{{range $}}aaaaaaaaaaaaaaaaaaaa{{end}}{{end}}{{end}}");
    let error = template.unwrap().render(&json!(list)).unwrap_err();
    assert!(error.contains("too much text"), "{error}");
}
