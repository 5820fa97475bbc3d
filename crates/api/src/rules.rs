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

/// Rules on one pool.
pub(crate) fn add_pool_rules(schema: &mut Schema) {
    add(
        schema,
        vec![
            rule(
                "has(self.gpuClass) != has(self.nodeSelector)".to_owned(),
                "'pool ' + self.name + ' must set exactly one of gpuClass and nodeSelector, it sets ' \
                 + (has(self.gpuClass) ? 'both' : 'neither')"
                    .to_owned(),
            ),
            rule(
                "!has(self.maxReplicas) || self.minReplicas <= self.maxReplicas".to_owned(),
                "'pool ' + self.name + ': minReplicas=' + string(self.minReplicas) + ' exceeds maxReplicas=' \
                 + string(self.maxReplicas)"
                    .to_owned(),
            ),
        ],
    );
}

/// Rules on the runtime.
pub(crate) fn add_runtime_rules(schema: &mut Schema) {
    let reserved = RESERVED_ARGUMENTS.map(|argument| format!("'{argument}'")).join(", ");
    let taken = format!("argument.split('=')[0] in [{reserved}]");
    let rule = rule(
        format!("!has(self.extraArgs) || self.extraArgs.all(argument, !({taken}))"),
        format!(
            "'runtime.extraArgs: ' + self.extraArgs.filter(argument, {taken})[0] + ' is set by the operator from \
             other fields of the spec'"
        ),
    );
    add(schema, vec![rule]);
}

fn add(schema: &mut Schema, rules: Vec<Rule>) {
    for rule in rules {
        // A Rule is strings only, so this cannot fail; a rule that went missing fails the comparison with crds/.
        let _ = validate(schema, rule);
    }
}

fn rule(expression: String, message: String) -> Rule {
    Rule::new(expression).message(Message::Expression(message))
}

/// Applies `condition` only when the spec states a shape.
fn with_shape(condition: &str) -> String {
    format!("!has({SHAPE}) || {condition}")
}

fn groups_divide_heads() -> Rule {
    rule(
        with_shape(&format!("{HEADS} % {GROUPS} == 0")),
        format!(
            "'spec.model.shape.numKeyValueHeads=' + string({GROUPS}) + ' does not divide \
             spec.model.shape.numAttentionHeads=' + string({HEADS}) + ' (' + string({HEADS}) + ' mod ' \
             + string({GROUPS}) + ' = ' + string({HEADS} % {GROUPS}) + '): every group must serve the same number of heads'"
        ),
    )
}

fn rope_is_even() -> Rule {
    rule(
        with_shape(&format!("{SHAPE}.qkRopeHeadDim % 2 == 0")),
        format!(
            "'spec.model.shape.qkRopeHeadDim=' + string({SHAPE}.qkRopeHeadDim) + ' is odd, expected an even number \
             of rotary channels'"
        ),
    )
}

fn context_fits_model() -> Rule {
    let (context, longest) = ("self.goal.contextLength", format!("{SHAPE}.maxPositionEmbeddings"));
    rule(
        with_shape(&format!("!has(self.goal) || !has({context}) || {context} <= {longest}")),
        format!(
            "'spec.goal.contextLength=' + string({context}) + ' exceeds spec.model.shape.maxPositionEmbeddings=' \
             + string({longest})"
        ),
    )
}

fn classes_or_pools() -> Rule {
    rule(
        "!has(self.pools) || size(self.pools) == 0 || !has(self.placement) || \
         !has(self.placement.allowedClasses) || size(self.placement.allowedClasses) == 0"
            .to_owned(),
        "'spec.placement.allowedClasses cannot be combined with spec.pools: the ' + string(size(self.pools)) \
         + ' pools name their own classes'"
            .to_owned(),
    )
}

/// Whose decode settings a rule judges.
struct Scope {
    /// CEL for the effective settings.
    path: &'static str,
    degree: &'static str,
    drafts: &'static str,
    /// CEL for the start of a sentence about them.
    subject: &'static str,
    over_pools: bool,
}

impl Scope {
    const SPEC: Self = Self {
        path: "self.decode.path",
        degree: "self.decode.tensorParallel",
        drafts: "self.decode.multiTokenPrediction",
        subject: "'spec.decode.'",
        over_pools: false,
    };
    const POOL: Self = Self {
        path: "(has(pool.decode) && has(pool.decode.path) ? pool.decode.path : self.decode.path)",
        degree: "(has(pool.decode) && has(pool.decode.tensorParallel) ? pool.decode.tensorParallel \
                 : self.decode.tensorParallel)",
        drafts: "(has(pool.decode) && has(pool.decode.multiTokenPrediction) ? pool.decode.multiTokenPrediction \
                 : self.decode.multiTokenPrediction)",
        subject: "'spec.pools[' + pool.name + '].decode.'",
        over_pools: true,
    };

    /// Requires `condition` of the spec, or of every pool, and speaks of the first that breaks it.
    fn rule(&self, condition: &str, message: String) -> Rule {
        if self.over_pools {
            rule(
                with_shape(&format!("!has(self.pools) || self.pools.all(pool, {condition})")),
                format!("self.pools.filter(pool, !({condition})).map(pool, {message})[0]"),
            )
        } else {
            rule(with_shape(&format!("({condition})")), message)
        }
    }

    fn degree_divides_heads(&self) -> Rule {
        let Self { degree, subject, .. } = self;
        let condition = format!("{degree} == 'Auto' || int({degree}) < 1 || {HEADS} % int({degree}) == 0");
        let message = format!(
            "{subject} + 'tensorParallel=' + string(int({degree})) + ' does not divide \
             spec.model.shape.numAttentionHeads=' + string({HEADS}) + ' (' + string({HEADS}) + ' mod ' \
             + string(int({degree})) + ' = ' + string({HEADS} % int({degree})) + ')'"
        );
        self.rule(&condition, message)
    }

    fn degree_fits_groups(&self) -> Rule {
        let Self { degree, path, subject, .. } = self;
        let condition = format!(
            "{path} != 'GQA' || {degree} == 'Auto' || int({degree}) < 1 || {GROUPS} % int({degree}) == 0 \
             || int({degree}) % {GROUPS} == 0"
        );
        let message = format!(
            "{subject} + 'tensorParallel=' + string(int({degree})) + ' and spec.model.shape.numKeyValueHeads=' \
             + string({GROUPS}) + ' do not divide each other (' + string({GROUPS}) + ' mod ' + string(int({degree})) \
             + ' = ' + string({GROUPS} % int({degree})) + ', ' + string(int({degree})) + ' mod ' + string({GROUPS}) \
             + ' = ' + string(int({degree}) % {GROUPS}) + '): on path GQA a rank would hold part of a group'"
        );
        self.rule(&condition, message)
    }

    fn drafts_have_layers(&self) -> Rule {
        let Self { drafts, subject, .. } = self;
        let condition =
            format!("{drafts} == 'Auto' || {drafts} == 'Off' || int({drafts}) < 1 || {DRAFT_LAYERS} > 0");
        let message = format!(
            "{subject} + 'multiTokenPrediction=' + string(int({drafts})) + ' needs prediction layers, but \
             spec.model.shape.numNextnPredictLayers=' + string({DRAFT_LAYERS})"
        );
        self.rule(&condition, message)
    }
}
