"""Is started by the asset that the main DAG publishes, as a user's own DAG would be."""

from airflow.sdk import Asset, dag, task


@dag(schedule=[Asset("vlm_published")])
def after_publish():
    @task
    def look(triggering_asset_events):
        return [event.extra for events in triggering_asset_events.values() for event in events]

    look()


after_publish()
