//! What a pool's InferenceModels, InferenceModelRewrites and InferenceObjectives say, by the names that requests use.
//!
//! Which model a request becomes, the first of these that says so:
//! 1. an InferenceModelRewrite: a rule that names the model before one that matches any, then the oldest object, then
//!    its first rule (upstream's precedence);
//! 2. the header `x-gateway-model-name-rewrite`;
//! 3. the InferenceModel of that name, by its `targetModels`;
//! 4. none: the model stays.

use std::collections::{HashMap, HashSet};

use crate::declared::Declared;
use crate::manifest::ModelTarget;
use crate::policy::PoolId;

/// The names of one pool.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Catalog {
    /// By objective.
    priorities: HashMap<String, i64>,
    /// By the model of a request.
    models: HashMap<String, Model>,
    rewrites: HashMap<String, Split>,
    /// The rule that matches every model.
    rewrite_any: Option<Split>,
    /// Every model that one becomes.
    targets: HashSet<String>,
}

/// What an InferenceModel says.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Model {
    priority: i64,
    split: Option<Split>,
}

/// Models by weight; never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Split {
    targets: Vec<ModelTarget>,
    weights: u64,
}

impl Catalog {
    /// What `declared` says of the pool.
    #[must_use]
    pub fn of(pool: &PoolId, declared: &Declared) -> Catalog {
        let mut catalog = Catalog::default();
        for objective in declared.objectives.iter().filter(|objective| objective.pool == *pool) {
            catalog.priorities.insert(objective.name.clone(), objective.priority);
        }
        for model in declared.models.iter().filter(|model| model.pool == *pool) {
            let split = catalog.split(&model.targets);
            let priority = model.criticality.map_or(0, crate::Criticality::priority);
            catalog.models.insert(model.model_name.clone(), Model { priority, split });
        }
        // The oldest first, and of the same the first rule: whoever is there stays.
        for rule in declared.rewrites.iter().filter(|rewrite| rewrite.pool == *pool).flat_map(|r| &r.rules) {
            let Some(split) = catalog.split(&rule.targets) else { continue };
            if rule.models.is_empty() {
                catalog.rewrite_any.get_or_insert(split);
                continue;
            }
            for model in &rule.models {
                catalog.rewrites.entry(model.clone()).or_insert_with(|| split.clone());
            }
        }
        catalog
    }

    fn split(&mut self, targets: &[ModelTarget]) -> Option<Split> {
        self.targets.extend(targets.iter().map(|target| target.model.clone()));
        let weights = targets.iter().map(|target| u64::from(target.weight)).sum();
        (weights > 0).then(|| Split { targets: targets.to_vec(), weights })
    }

    /// Whether what becomes of a request depends on its model.
    #[must_use]
    pub fn model_matters(&self) -> bool {
        !self.models.is_empty() || !self.rewrites.is_empty() || self.rewrite_any.is_some()
    }

    /// Whether some model becomes another.
    #[must_use]
    pub fn may_rename(&self) -> bool {
        !self.targets.is_empty()
    }

    /// Whether the operator speaks of `model`: then it is good, whatever endpoints say that they serve.
    #[must_use]
    pub fn names(&self, model: &str) -> bool {
        self.models.contains_key(model) || self.targets.contains(model)
    }

    /// How urgent a request is: by the objective that it names, else by its model, else 0. Higher goes first, negative
    /// may be shed. An objective that nobody declared is 0.
    #[must_use]
    pub fn priority(&self, objective: Option<&str>, model: Option<&str>) -> i64 {
        match objective {
            Some(objective) => self.priorities.get(objective).copied().unwrap_or(0),
            None => model.and_then(|model| self.models.get(model)).map_or(0, |model| model.priority),
        }
    }

    /// The model that a request for `model` becomes, where the client itself `asked` for one by header. `share` places
    /// it among those before and after: evenly spread values give each target its weight.
    #[must_use]
    pub fn target<'a>(&'a self, model: &'a str, asked: Option<&'a str>, share: u64) -> &'a str {
        let rewrite = self.rewrites.get(model).or(self.rewrite_any.as_ref());
        let named = || self.models.get(model).and_then(|model| model.split.as_ref());
        match (rewrite, asked) {
            (Some(split), _) => split.target(share),
            (None, Some(asked)) => asked,
            (None, None) => named().map_or(model, |split| split.target(share)),
        }
    }
}

impl Split {
    fn target(&self, share: u64) -> &str {
        let point = ((u128::from(share) * u128::from(self.weights)) >> 64) as u64;
        let mut up_to = 0;
        let hit = self.targets.iter().find(|target| {
            up_to += u64::from(target.weight);
            point < up_to
        });
        // The point lies below the sum of the weights: there is a hit.
        hit.map_or("", |target| &target.model)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{assemble, parse};

    const POOL: &str = "
apiVersion: inference.networking.k8s.io/v1
kind: InferencePool
metadata: {name: p, namespace: default}
spec: {selector: {matchLabels: {app: x}}, targetPorts: [{number: 8000}]}
";

    fn catalog(documents: &[&str]) -> Catalog {
        let text = format!("{POOL}---\n{}", documents.join("\n---\n"));
        let declared = assemble([&parse("f.yaml", &text).unwrap()]);
        assert!(declared.is_whole(), "{:?}", declared.faults);
        Catalog::of(&PoolId::new("default", "p"), &declared)
    }

    fn model(name: &str, spec: &str) -> String {
        format!(
            "apiVersion: inference.networking.x-k8s.io/v1alpha2\nkind: InferenceModel\nmetadata: {{name: {name}}}\nspec: {{modelName: {name}, poolRef: {{name: p}}, {spec}}}"
        )
    }

    fn rewrite(name: &str, created: &str, rules: &str) -> String {
        format!(
            "apiVersion: inference.networking.x-k8s.io/v1alpha2\nkind: InferenceModelRewrite\nmetadata: {{name: {name}, creationTimestamp: \"{created}\"}}\nspec: {{poolRef: {{name: p}}, rules: {rules}}}"
        )
    }

    /// How many of a thousand evenly spread requests become which model.
    fn shares(catalog: &Catalog, model: &str) -> HashMap<String, usize> {
        let mut shares = HashMap::new();
        for number in 0..1000 {
            let share = number * (u64::MAX / 1000 + 1);
            *shares.entry(catalog.target(model, None, share).to_owned()).or_default() += 1;
        }
        shares
    }

    #[test]
    fn nothing_said_changes_nothing() {
        let catalog = catalog(&[]);
        assert!(!catalog.model_matters() && !catalog.names("m"));
        assert_eq!(catalog.target("m", None, 7), "m");
        assert_eq!(catalog.priority(None, Some("m")), 0);
    }

    #[test]
    fn a_model_is_split_by_weight() {
        let documents = model("food", "targetModels: [{name: v1, weight: 9}, {name: v2, weight: 1}]");
        let catalog = catalog(&[&documents]);
        assert_eq!(shares(&catalog, "food"), HashMap::from([("v1".into(), 900), ("v2".into(), 100)]));
        assert!(catalog.names("food") && catalog.names("v2") && !catalog.names("other"));
        assert_eq!(catalog.target("food", None, u64::MAX), "v2");
    }

    #[test]
    fn without_weights_evenly_and_without_targets_itself() {
        let split = model("even", "targetModels: [{name: a}, {name: b}]");
        let catalog = catalog(&[&split, &model("plain", "criticality: Critical")]);
        assert_eq!(shares(&catalog, "even"), HashMap::from([("a".into(), 500), ("b".into(), 500)]));
        assert_eq!(catalog.target("plain", None, 1), "plain");
    }

    #[test]
    fn an_exact_rule_beats_one_for_all_then_the_oldest_then_the_first() {
        let old = rewrite(
            "old",
            "2025-01-01T00:00:00Z",
            "[{targets: [{modelRewrite: any-old}]}, {matches: [{model: {value: m}}], targets: [{modelRewrite: first}]}, {matches: [{model: {value: m}}], targets: [{modelRewrite: second}]}]",
        );
        let new = rewrite(
            "new",
            "2026-01-01T00:00:00Z",
            "[{matches: [{model: {value: m}}], targets: [{modelRewrite: newer}]}, {matches: [{model: {value: other}}], targets: [{modelRewrite: for-other}]}, {targets: [{modelRewrite: any-new}]}]",
        );
        let catalog = catalog(&[&new, &old]);
        assert_eq!(catalog.target("m", None, 0), "first");
        assert_eq!(catalog.target("other", None, 0), "for-other");
        assert_eq!(catalog.target("z", None, 0), "any-old");
    }

    #[test]
    fn a_rewrite_beats_the_header_and_the_header_beats_a_model() {
        let documents = [
            model("m", "targetModels: [{name: by-model}]"),
            model("r", "targetModels: [{name: by-model}]"),
            rewrite(
                "w",
                "2025-01-01T00:00:00Z",
                "[{matches: [{model: {value: r}}], targets: [{modelRewrite: by-rule}]}]",
            ),
        ];
        let documents: Vec<&str> = documents.iter().map(String::as_str).collect();
        let catalog = catalog(&documents);
        assert_eq!(catalog.target("r", Some("by-header"), 0), "by-rule");
        assert_eq!(catalog.target("m", Some("by-header"), 0), "by-header");
        assert_eq!(catalog.target("m", None, 0), "by-model");
    }

    #[test]
    fn a_named_objective_beats_the_models_criticality() {
        let objective = "apiVersion: inference.networking.x-k8s.io/v1alpha2\nkind: InferenceObjective\nmetadata: {name: urgent}\nspec: {priority: 7, poolRef: {name: p}}";
        let models =
            [model("c", "criticality: Critical"), model("s", "criticality: Sheddable"), model("u", "")];
        let catalog = catalog(&[objective, &models[0], &models[1], &models[2]]);
        assert_eq!(catalog.priority(Some("urgent"), Some("s")), 7);
        assert_eq!(catalog.priority(Some("unknown"), Some("c")), 0);
        assert_eq!(catalog.priority(None, Some("c")), 100);
        assert_eq!(catalog.priority(None, Some("s")), -100);
        assert_eq!(catalog.priority(None, Some("u")), 0);
        assert_eq!(catalog.priority(None, None), 0);
    }
}
