//! The CEL rules that refuse impossible arithmetic at admission.
//!
//! Rules that cross fields sit on `spec`, and each is written once for two scopes: the spec's own decode settings
//! and each pool's effective ones (its override, or the spec's). The sentences match those of
//! [`gqla_model::SplitError`], which the planner uses for shapes that only the model's files reveal.
//! Numbers from int-or-string fields go through `int()`, whose cost the API server can bound.

use kube::core::{Message, Rule, validate};
use schemars::Schema;

const SHAPE: &str = "self.model.shape";
const HEADS: &str = "self.model.shape.numAttentionHeads";
const GROUPS: &str = "self.model.shape.numKeyValueHeads";
const DRAFT_LAYERS: &str =
    "(has(self.model.shape.numNextnPredictLayers) ? self.model.shape.numNextnPredictLayers : 0)";

/// Arguments the operator sets itself.
const RESERVED_ARGUMENTS: [&str; 10] = [
    "--model",
    "--served-model-name",
    "--decode-path",
    "--tp",
    "--mtp",
    "--device",
    "--listen",
    "--admin-listen",
    "--max-model-len",
    "--max-num-seqs",
];

/// Rules on the spec of a GQLADeployment.
pub(crate) fn add_deployment_rules(schema: &mut Schema) {
    let mut rules = vec![groups_divide_heads(), rope_is_even(), context_fits_model(), classes_or_pools()];
    for scope in [Scope::SPEC, Scope::POOL] {
        rules.extend([scope.degree_divides_heads(), scope.degree_fits_groups(), scope.drafts_have_layers()]);
    }
    add(schema, rules);
}

/// Pools without a name of their own are called after their class, so it has to fit a pool's name.
pub(crate) fn class_name() -> Rule {
    rule(
        "size(self.metadata.name) <= 32 && self.metadata.name.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')",
        "metadata.name=%s must be at most 32 lower-case letters, digits and inner dashes: pools are named after it",
        &["self.metadata.name"],
    )
}

/// Rules on one pool.
pub(crate) fn add_pool_rules(schema: &mut Schema) {
    add(
        schema,
        vec![
            rule(
                "has(self.gpuClass) != has(self.nodeSelector)",
                "pool %s must set exactly one of gpuClass and nodeSelector, it sets %s",
                &["self.name", "has(self.gpuClass) ? 'both' : 'neither'"],
            ),
            rule(
                "!has(self.maxReplicas) || self.minReplicas <= self.maxReplicas",
                "pool %s: minReplicas=%d exceeds maxReplicas=%d",
                &["self.name", "self.minReplicas", "self.maxReplicas"],
            ),
        ],
    );
}

/// Rules on the runtime.
pub(crate) fn add_runtime_rules(schema: &mut Schema) {
    let reserved = RESERVED_ARGUMENTS.map(|argument| format!("'{argument}'")).join(", ");
    let taken = format!("argument.split('=')[0] in [{reserved}]");
    let rule = rule(
        &format!("!has(self.extraArgs) || self.extraArgs.all(argument, !({taken}))"),
        "runtime.extraArgs: %s is set by the operator from other fields of the spec",
        &[&format!("self.extraArgs.filter(argument, {taken})[0]")],
    );
    add(schema, vec![rule]);
}

fn add(schema: &mut Schema, rules: Vec<Rule>) {
    for rule in rules {
        // A Rule is strings only, so this cannot fail; a rule that went missing fails the comparison with crds/.
        let _ = validate(schema, rule);
    }
}

/// A rule whose sentence is `format` filled with the CEL expressions `values`.
fn rule(expression: &str, format: &str, values: &[&str]) -> Rule {
    Rule::new(expression).message(Message::Expression(sentence(format, values)))
}

/// One call of `format()`: the API server bounds its cost, but not that of concatenating numbers as strings.
fn sentence(format: &str, values: &[&str]) -> String {
    format!("'{format}'.format([{}])", values.join(", "))
}

/// Applies `condition` only when the spec states a shape.
fn with_shape(condition: &str) -> String {
    format!("!has({SHAPE}) || {condition}")
}

fn groups_divide_heads() -> Rule {
    rule(
        &with_shape(&format!("{HEADS} % {GROUPS} == 0")),
        "spec.model.shape.numKeyValueHeads=%d does not divide spec.model.shape.numAttentionHeads=%d (%d mod %d = %d): \
         every group must serve the same number of heads",
        &[GROUPS, HEADS, HEADS, GROUPS, &format!("{HEADS} % {GROUPS}")],
    )
}

fn rope_is_even() -> Rule {
    let rope = format!("{SHAPE}.qkRopeHeadDim");
    rule(
        &with_shape(&format!("{rope} % 2 == 0")),
        "spec.model.shape.qkRopeHeadDim=%d is odd, expected an even number of rotary channels",
        &[&rope],
    )
}

fn context_fits_model() -> Rule {
    let (context, longest) = ("self.goal.contextLength", format!("{SHAPE}.maxPositionEmbeddings"));
    rule(
        &with_shape(&format!("!has(self.goal) || !has({context}) || {context} <= {longest}")),
        "spec.goal.contextLength=%d exceeds spec.model.shape.maxPositionEmbeddings=%d",
        &[context, &longest],
    )
}

fn classes_or_pools() -> Rule {
    rule(
        "!has(self.pools) || size(self.pools) == 0 || !has(self.placement) || \
         !has(self.placement.allowedClasses) || size(self.placement.allowedClasses) == 0",
        "spec.placement.allowedClasses cannot be combined with spec.pools: the %d pools name their own classes",
        &["size(self.pools)"],
    )
}

/// Whose decode settings a rule judges.
struct Scope {
    /// CEL for the effective settings.
    path: &'static str,
    degree: &'static str,
    drafts: &'static str,
    /// Start of a sentence about them, and the CEL that fills it.
    subject: &'static str,
    subject_values: &'static [&'static str],
    over_pools: bool,
}

impl Scope {
    const SPEC: Self = Self {
        path: "self.decode.path",
        degree: "self.decode.tensorParallel",
        drafts: "self.decode.multiTokenPrediction",
        subject: "spec.decode",
        subject_values: &[],
        over_pools: false,
    };
    const POOL: Self = Self {
        path: "(has(pool.decode) && has(pool.decode.path) ? pool.decode.path : self.decode.path)",
        degree: "(has(pool.decode) && has(pool.decode.tensorParallel) ? pool.decode.tensorParallel \
                 : self.decode.tensorParallel)",
        drafts: "(has(pool.decode) && has(pool.decode.multiTokenPrediction) ? pool.decode.multiTokenPrediction \
                 : self.decode.multiTokenPrediction)",
        subject: "spec.pools[%s].decode",
        subject_values: &["pool.name"],
        over_pools: true,
    };

    /// Requires `condition` of the spec, or of every pool, and speaks of the first that breaks it.
    fn rule(&self, condition: &str, format: &str, values: &[&str]) -> Rule {
        let sentence =
            sentence(&format!("{}.{format}", self.subject), &[self.subject_values, values].concat());
        let (expression, sentence) = if self.over_pools {
            (
                format!("!has(self.pools) || self.pools.all(pool, {condition})"),
                format!("self.pools.filter(pool, !({condition})).map(pool, {sentence})[0]"),
            )
        } else {
            (format!("({condition})"), sentence)
        };
        Rule::new(with_shape(&expression)).message(Message::Expression(sentence))
    }

    fn degree_divides_heads(&self) -> Rule {
        let degree = format!("int({})", self.degree);
        self.rule(
            &format!("{} == 'Auto' || {degree} < 1 || {HEADS} % {degree} == 0", self.degree),
            "tensorParallel=%d does not divide spec.model.shape.numAttentionHeads=%d (%d mod %d = %d)",
            &[&degree, HEADS, HEADS, &degree, &format!("{HEADS} % {degree}")],
        )
    }

    fn degree_fits_groups(&self) -> Rule {
        let degree = format!("int({})", self.degree);
        let (path, choice) = (self.path, self.degree);
        self.rule(
            &format!(
                "{path} != 'GQA' || {choice} == 'Auto' || {degree} < 1 || {GROUPS} % {degree} == 0 \
                 || {degree} % {GROUPS} == 0"
            ),
            "tensorParallel=%d and spec.model.shape.numKeyValueHeads=%d do not divide each other \
             (%d mod %d = %d, %d mod %d = %d): on path GQA a rank would hold part of a group",
            &[
                &degree,
                GROUPS,
                GROUPS,
                &degree,
                &format!("{GROUPS} % {degree}"),
                &degree,
                GROUPS,
                &format!("{degree} % {GROUPS}"),
            ],
        )
    }

    fn drafts_have_layers(&self) -> Rule {
        let (choice, drafts) = (self.drafts, format!("int({})", self.drafts));
        self.rule(
            &format!("{choice} == 'Auto' || {choice} == 'Off' || {drafts} < 1 || {DRAFT_LAYERS} > 0"),
            "multiTokenPrediction=%d needs prediction layers, but \
             spec.model.shape.numNextnPredictLayers=%d",
            &[&drafts, DRAFT_LAYERS],
        )
    }
}
