{{/* Start of all names. */}}
{{- define "divert.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "divert.agent" -}}{{ include "divert.fullname" . }}-agent{{- end -}}
{{- define "divert.controller" -}}{{ include "divert.fullname" . }}-controller{{- end -}}

{{/* Labels that select pods of a part: a dictionary of `root` and `part`. They must never change. */}}
{{- define "divert.selector" -}}
app.kubernetes.io/name: divert-{{ .part }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
{{- end -}}

{{/* Labels of the pods of a part. No versions: a release that leaves a part as it is restarts nothing. */}}
{{- define "divert.podLabels" -}}
{{ include "divert.selector" . }}
app.kubernetes.io/component: {{ .part }}
app.kubernetes.io/part-of: divert
{{- end -}}

{{/* Labels of everything that belongs to no part. */}}
{{- define "divert.common" -}}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/part-of: divert
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{/* Labels of a part: a dictionary of `root` and `part`. */}}
{{- define "divert.labels" -}}
app.kubernetes.io/name: divert-{{ .part }}
app.kubernetes.io/component: {{ .part }}
{{ include "divert.common" .root }}
{{- end -}}

{{- define "divert.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end -}}

{{/* Options of compile, which agents and controller have in common. */}}
{{- define "divert.settings" -}}
- "--cluster-domain={{ .Values.settings.clusterDomain }}"
- "--key={{ join "," .Values.agent.keys }}"
- "--label-range-v4={{ .Values.agent.labelRangeV4 }}"
- "--label-range-v6={{ .Values.agent.labelRangeV6 }}"
{{- with .Values.settings.sharedNamespaces }}
- "--shared-namespaces={{ join "," . }}"
{{- end }}
{{- with .Values.settings.opaquePorts }}
{{- $ports := list }}
{{- range . }}{{ $ports = append $ports (toString .) }}{{ end }}
- "--opaque-ports={{ join "," $ports }}"
{{- end }}
{{- end -}}

{{/* The variable of the log filter: a level alone keeps the client's own lines off, as the program does. */}}
{{- define "divert.log" -}}
{{- if regexMatch "^[a-z]+$" . }}{{ . }},kube_client=off,kube_runtime=off{{ else }}{{ . }}{{ end -}}
{{- end -}}

{{/* What the controller's containers need, and the profile `restricted` of pod security allows. */}}
{{- define "divert.restrictedPod" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "divert.restricted" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end -}}

{{- define "divert.controllerEnv" -}}
- name: POD_NAME
  valueFrom: {fieldRef: {fieldPath: metadata.name}}
- name: POD_NAMESPACE
  valueFrom: {fieldRef: {fieldPath: metadata.namespace}}
- name: DIVERT_LOG
  value: {{ include "divert.log" .Values.controller.log | quote }}
{{- end -}}
