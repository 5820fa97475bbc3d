{{- define "gqla.name" -}}
{{- .Values.nameOverride | default .Chart.Name | trunc 63 | trimSuffix "-" -}}
{{- end }}

{{- define "gqla.fullname" -}}
{{- $name := include "gqla.name" . -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 63 | trimSuffix "-" -}}
{{- else if contains $name .Release.Name -}}
{{- .Release.Name | trunc 63 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 63 | trimSuffix "-" -}}
{{- end -}}
{{- end }}

{{- /* Names of cluster-scoped objects: two releases in two namespaces must not share them. */ -}}
{{- define "gqla.clusterName" -}}
{{- printf "%s:%s" .Release.Namespace (include "gqla.fullname" .) -}}
{{- end }}

{{- define "gqla.selector" -}}
app.kubernetes.io/name: {{ include "gqla.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "gqla.labels" -}}
{{ include "gqla.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{- define "gqla.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{- .Values.serviceAccount.name | default (include "gqla.fullname" .) -}}
{{- else -}}
{{- required "serviceAccount.name is needed when serviceAccount.create is false" .Values.serviceAccount.name -}}
{{- end -}}
{{- end }}

{{- define "gqla.image" -}}
{{- printf "%s:%s" .Values.image.repository (.Values.image.tag | default .Chart.AppVersion) -}}
{{- end }}

{{- define "gqla.serverImage" -}}
{{- .Values.serverImage | default (printf "gqla-server:%s" .Chart.AppVersion) -}}
{{- end }}

{{- define "gqla.calibrationName" -}}
{{- printf "%s-calibration" (include "gqla.fullname" . | trunc 51 | trimSuffix "-") -}}
{{- end }}

{{- /* JSON, or nothing. */ -}}
{{- define "gqla.calibration" -}}
{{- with .Values.calibration -}}
{{- if kindIs "string" . }}{{ . }}{{ else }}{{ toJson . }}{{ end -}}
{{- end -}}
{{- end }}

{{- define "gqla.agentName" -}}
{{- printf "%s-agent" (include "gqla.fullname" . | trunc 57 | trimSuffix "-") -}}
{{- end }}

{{- /* Apart from the operator's: its Service, PodDisruptionBudget and Deployment must not select agents. */ -}}
{{- define "gqla.agentSelector" -}}
app.kubernetes.io/name: {{ printf "%s-agent" (include "gqla.name" . | trunc 57 | trimSuffix "-") }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "gqla.agentLabels" -}}
{{ include "gqla.agentSelector" . }}
gqla.dev/component: agent
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}
