/** What a panel says where its queries found nothing. */
export function Empty({ panel }) {
  return <div className="empty">{panel.fieldConfig.defaults.noValue ?? 'No data'}</div>;
}
